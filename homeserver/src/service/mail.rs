//! Sending e-mail by SMTP ([RFC 5321](https://www.rfc-editor.org/rfc/rfc5321)): one short text at a time,
//! to one recipient. Servers that know no `EHLO` are greeted with `HELO`.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufStream},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::accounts::random_id;
use crate::{
    clock::Clock,
    config::{Email, SmtpEncryption},
};

/// How long a mail may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest line of an answer, in bytes.
const LONGEST_LINE: usize = 4_096;
/// The most lines of one answer.
const MOST_LINES: usize = 100;

/// Sends mail.
#[derive(Clone)]
pub(crate) struct Mail {
    settings: Arc<Email>,
    tls: Arc<ClientConfig>,
    clock: Clock,
}

/// A mail.
pub(crate) struct Letter<'a> {
    pub(crate) to: &'a str,
    pub(crate) subject: &'a str,
    pub(crate) text: &'a str,
}

/// Why a mail was not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MailError {
    #[error("the mail server could not be reached: {0}")]
    Io(#[from] std::io::Error),
    #[error("the mail server took too long")]
    Timeout,
    #[error("the mail server answered {0}")]
    Refused(u16),
    #[error("the mail server does not speak SMTP")]
    NotSmtp,
    #[error("the mail server does not offer encryption, which the configuration asks for")]
    NoEncryption,
    #[error("the name of the mail server is not one")]
    Name,
    #[error("the address cannot be written to")]
    Address,
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// A conversation with a mail server.
struct Talk(BufStream<Box<dyn Stream>>);

/// What a server says of itself when it is greeted.
#[derive(Default)]
struct Offers {
    starttls: bool,
    plain: bool,
}

impl Mail {
    pub(crate) fn new(settings: Email, tls: ClientConfig, clock: Clock) -> Self {
        Self {
            settings: Arc::new(settings),
            tls: Arc::new(tls),
            clock,
        }
    }

    /// Sends a mail; `Ok` when the server has taken it.
    pub(crate) async fn send(&self, letter: Letter<'_>) -> Result<(), MailError> {
        let sent = tokio::time::timeout(PATIENCE, self.deliver(&letter)).await;
        sent.map_err(|_| MailError::Timeout)?
    }

    async fn deliver(&self, letter: &Letter<'_>) -> Result<(), MailError> {
        let good = |address: &str| {
            address.contains('@')
                && !address.contains(|c: char| c.is_control() || "<> ".contains(c))
        };
        if !good(letter.to) || !good(&self.settings.from) {
            return Err(MailError::Address);
        }
        let mut talk = self.greeted().await?;
        talk.say(&format!("MAIL FROM:<{}>", self.settings.from), 250)
            .await?;
        talk.say(&format!("RCPT TO:<{}>", letter.to), 250).await?;
        talk.say("DATA", 354).await?;
        let message = self.message(letter);
        talk.0.write_all(message.as_bytes()).await?;
        talk.say("\r\n.", 250).await?;
        // It is sent, whatever the server answers to this.
        drop(talk.say("QUIT", 221).await);
        Ok(())
    }

    /// Connects, encrypts and logs in as the configuration says.
    async fn greeted(&self) -> Result<Talk, MailError> {
        let plain: Box<dyn Stream> = Box::new(TcpStream::connect(&self.settings.smtp).await?);
        let stream = match self.settings.encryption {
            SmtpEncryption::Tls => self.encrypted(plain).await?,
            SmtpEncryption::StartTls | SmtpEncryption::None => plain,
        };
        let mut talk = Talk(BufStream::new(stream));
        talk.answer(220).await?;
        let name = self.own_name();
        let mut offers = talk.greet(name).await?;
        if self.settings.encryption == SmtpEncryption::StartTls {
            if !offers.starttls {
                return Err(MailError::NoEncryption);
            }
            talk.say("STARTTLS", 220).await?;
            // What came in the clear behind the answer is forgotten with the buffer.
            talk = Talk(BufStream::new(self.encrypted(talk.0.into_inner()).await?));
            offers = talk.greet(name).await?;
        }
        if let (Some(user), Some(password)) = (&self.settings.username, &self.settings.password) {
            talk.log_in(user, password, &offers).await?;
        }
        Ok(talk)
    }

    async fn encrypted(&self, stream: Box<dyn Stream>) -> Result<Box<dyn Stream>, MailError> {
        let host = self.settings.smtp.rsplit_once(':');
        let host = host.map_or("", |(host, _)| host);
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|_| MailError::Name)?;
        let connector = TlsConnector::from(self.tls.clone());
        Ok(Box::new(connector.connect(name, stream).await?))
    }

    fn own_name(&self) -> &str {
        let domain = self.settings.from.rsplit_once('@');
        domain.map_or("localhost", |(_, domain)| domain)
    }

    fn message(&self, letter: &Letter<'_>) -> String {
        let now = u64::from(self.clock.now().0) / 1000;
        let mut message = format!(
            "Date: {}\r\nFrom: <{}>\r\nTo: <{}>\r\nSubject: {}\r\nMessage-ID: <{}@{}>\r\n\
             MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Transfer-Encoding: 8bit\r\nAuto-Submitted: auto-generated\r\n",
            date(now),
            self.settings.from,
            letter.to,
            letter.subject,
            random_id(),
            self.own_name(),
        );
        for line in letter.text.lines() {
            message.push_str("\r\n");
            // A line that begins with a dot would end the mail.
            if line.starts_with('.') {
                message.push('.');
            }
            message.push_str(line);
        }
        message
    }
}

impl Talk {
    /// Says one line and waits for an answer with this code.
    async fn say(&mut self, line: &str, code: u16) -> Result<Vec<String>, MailError> {
        self.0.write_all(line.as_bytes()).await?;
        self.0.write_all(b"\r\n").await?;
        self.0.flush().await?;
        self.answer(code).await
    }

    /// Waits for an answer with this code: the text of its lines.
    async fn answer(&mut self, code: u16) -> Result<Vec<String>, MailError> {
        let mut lines = Vec::new();
        while lines.len() < MOST_LINES {
            let line = self.line().await?;
            let found = line.get(..3).and_then(|code| code.parse().ok());
            let found: u16 = found.ok_or(MailError::NotSmtp)?;
            lines.push(line.get(4..).unwrap_or_default().to_owned());
            if line.as_bytes().get(3) == Some(&b'-') {
                continue;
            }
            return if found == code {
                Ok(lines)
            } else {
                Err(MailError::Refused(found))
            };
        }
        Err(MailError::NotSmtp)
    }

    async fn line(&mut self) -> Result<String, MailError> {
        let mut line = Vec::new();
        loop {
            let buffer = self.0.fill_buf().await?;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(buffer.len(), |end| end + 1);
            line.extend(buffer.iter().take(taken));
            self.0.consume(taken);
            if taken == 0 || line.len() > LONGEST_LINE {
                return Err(MailError::NotSmtp);
            }
            if end.is_some() {
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        }
    }

    async fn greet(&mut self, name: &str) -> Result<Offers, MailError> {
        match self.say(&format!("EHLO {name}"), 250).await {
            Ok(lines) => {
                let lines: Vec<_> = lines.iter().map(|line| line.to_uppercase()).collect();
                let plain = |line: &String| line.starts_with("AUTH") && line.contains("PLAIN");
                Ok(Offers {
                    starttls: lines.iter().any(|line| line == "STARTTLS"),
                    plain: lines.iter().any(plain),
                })
            }
            Err(MailError::Refused(500..=599)) => {
                self.say(&format!("HELO {name}"), 250).await?;
                Ok(Offers::default())
            }
            Err(error) => Err(error),
        }
    }

    async fn log_in(
        &mut self,
        user: &str,
        password: &str,
        offers: &Offers,
    ) -> Result<(), MailError> {
        if offers.plain {
            let plain = Zeroizing::new(format!("\0{user}\0{password}"));
            let line = Zeroizing::new(format!("AUTH PLAIN {}", STANDARD.encode(&*plain)));
            return self.say(&line, 235).await.map(drop);
        }
        self.say("AUTH LOGIN", 334).await?;
        self.say(&STANDARD.encode(user), 334).await?;
        let password = Zeroizing::new(STANDARD.encode(password));
        self.say(&password, 235).await.map(drop)
    }
}

/// A date as mails have it ([RFC 5322](https://www.rfc-editor.org/rfc/rfc5322#section-3.3)).
fn date(seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since March of the year 0, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12;
    let year = era * 400 + year_of_era + u64::from(month < 2);
    let name = usize::try_from(month)
        .ok()
        .and_then(|month| MONTHS.get(month));
    format!(
        "{day:02} {} {year} {:02}:{:02}:{:02} +0000",
        name.unwrap_or(&"Jan"),
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0), "01 Jan 1970 00:00:00 +0000");
        assert_eq!(date(951_827_696), "29 Feb 2000 12:34:56 +0000");
        assert_eq!(date(1_795_395_600), "23 Nov 2026 01:00:00 +0000");
    }
}
