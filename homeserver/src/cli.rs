//! The command line.

mod admin;
mod demo;

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

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
    Admin(admin::Admin),
    /// Show on this machine what Sotto is for: two servers, three people, an encrypted conversation,
    /// and what the operators can read of it
    Demo {
        /// Use a PostgreSQL server, in two databases that are made for this and removed again
        #[arg(long, value_name = "URL")]
        database_url: Option<String>,
    },
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
    let quiet = matches!(
        arguments.command,
        Some(Command::Admin(_) | Command::Demo { .. })
    );
    let default = if quiet {
        "error"
    } else {
        "info,ruma_state_res=error,sqlx=warn"
    };
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A file has no colors.
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let done = match arguments.command {
        None => runtime.block_on(serve_until_stopped(arguments.serve)),
        Some(Command::Serve(serve)) => runtime.block_on(serve_until_stopped(serve)),
        Some(Command::Admin(arguments)) => runtime.block_on(admin::run(arguments)),
        Some(Command::Demo { database_url }) => {
            runtime.block_on(demo::run(database_url.as_deref()))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    // Standard error may be closed; there is nobody left to tell.
    drop(writeln!(std::io::stderr(), "sotto: {error}"));
    ExitCode::FAILURE
}

async fn serve_until_stopped(serve: Serve) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
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
