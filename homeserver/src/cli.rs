//! The command line.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use sotto_homeserver::{
    Homeserver,
    clock::Clock,
    config::{Config, Overrides, Registration},
};

/// Sotto: a federated Matrix homeserver for conversations that only the people in them can read.
#[derive(Debug, Parser)]
#[command(name = "sotto", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (what `sotto` alone does)
    Serve(Serve),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// The configuration, a TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

/// Does what the arguments say.
pub(crate) fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let serve = match arguments.command {
        None => arguments.serve,
        Some(Command::Serve(serve)) => serve,
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "info,ruma_state_res=error,sqlx=warn".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(serve_until_stopped(serve)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    // Standard error may be closed; there is nobody left to tell.
    drop(writeln!(std::io::stderr(), "sotto: {error}"));
    ExitCode::FAILURE
}

async fn serve_until_stopped(serve: Serve) -> Result<(), Box<dyn std::error::Error>> {
    use tokio::signal::unix::{SignalKind, signal};
    let config = Config::load(serve.config.as_deref(), serve.overrides)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let server = Homeserver::start(config.clone(), Clock::system()).await?;
    welcome(&config, &server)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    server.stop().await;
    Ok(())
}

/// What to do next.
fn welcome(config: &Config, server: &Homeserver) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "Sotto serves {} on http://{}",
        config.server_name,
        server.address()
    )?;
    writeln!(out, "Data: {}", config.data_dir.display())?;
    if let Some(token) = server.first_registration_token()
        && config.registration == Registration::Token
    {
        writeln!(
            out,
            "\nThere is no account yet. Register the first one in any Matrix client:"
        )?;
        writeln!(out, "  homeserver          http://{}", server.address())?;
        writeln!(
            out,
            "  registration token  {token}    (good for one account)"
        )?;
    }
    if config.server_name == "localhost" {
        writeln!(
            out,
            "\nThe name `localhost` does not federate: other servers cannot find it.\n\
             For a real server, choose its name before the first account is made:\n\
             sotto --server-name example.org"
        )?;
    }
    out.flush()
}
