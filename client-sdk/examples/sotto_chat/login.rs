//! Who the person is.

use std::{
    env,
    io::{IsTerminal as _, Write as _},
    process::Command,
};

use sotto_client::Client;

use super::Failure;

/// Goes on with the session in the store, or begins one.
pub(crate) async fn log_in() -> Result<Client, Failure> {
    let store = env::var("SOTTO_STORE").unwrap_or_else(|_| "./sotto-chat.sqlite".to_owned());
    let client = Client::builder()
        .homeserver(from_environment(
            "SOTTO_HOMESERVER",
            "The server (https://…)",
        )?)
        .store(store.as_str())
        .build()
        .await?;
    if client.restore().await? {
        return Ok(client);
    }
    let user = from_environment("SOTTO_USER", "Your name")?;
    let password = match env::var("SOTTO_PASSWORD") {
        Ok(password) => password,
        Err(_) => secretly("Your password")?,
    };
    let mut arguments = env::args().skip(1);
    if arguments.next().as_deref() == Some("--register") {
        let token = arguments.next();
        client.register(&user, &password, token.as_deref()).await?;
    } else {
        client.login_password(&user, &password).await?;
    }
    Ok(client)
}

fn from_environment(name: &str, question: &str) -> Result<String, Failure> {
    env::var(name).map_or_else(|_| ask(question), Ok)
}

fn ask(question: &str) -> Result<String, Failure> {
    write!(std::io::stderr(), "{question}: ")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    let answer = answer.trim();
    if answer.is_empty() {
        return Err("nothing was answered".into());
    }
    Ok(answer.to_owned())
}

/// Asks without showing what is typed, if there is a terminal to tell so.
fn secretly(question: &str) -> Result<String, Failure> {
    let echo = |mode: &str| {
        if std::io::stdin().is_terminal() {
            drop(Command::new("stty").arg(mode).status());
        }
    };
    echo("-echo");
    let answer = ask(question);
    echo("echo");
    writeln!(std::io::stderr())?;
    answer
}
