//! The master's command socket.
//!
//! Owns the exchange of many commands and their answers over one connection. Each exchange opens a new connection,
//! because a reload closes them all.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

/// The time that an exchange may take. Even a busy HAProxy answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// The most commands in one connection.
const BATCH: usize = 200;

/// An exchange that failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// No HAProxy master listens on the socket.
    #[error("no HAProxy answers at {}", path.display())]
    Unreachable {
        /// The path of the socket.
        path: PathBuf,
        /// The error of the connection attempt.
        #[source]
        source: std::io::Error,
    },
    /// HAProxy closed the connection during the exchange.
    #[error("HAProxy closed the connection")]
    Cut(#[source] std::io::Error),
    /// HAProxy gave no whole answer in time.
    #[error("HAProxy did not answer in {} s", PATIENCE.as_secs())]
    Silent,
    /// HAProxy gave fewer or more answers than commands.
    #[error("HAProxy gave {answers} answers to {commands} commands")]
    Miscounted {
        /// The number of commands sent.
        commands: usize,
        /// The number of answers received.
        answers: usize,
    },
    /// The worker with this process id has gone.
    #[error("HAProxy's worker {0} has gone")]
    NoWorker(u32),
    /// The answer to a command can't be parsed.
    #[error("HAProxy's answer to {command:?} can't be read: {answer:?}")]
    Unreadable {
        /// The command.
        command: String,
        /// The answer, cut to 200 characters.
        answer: String,
    },
}

impl CliError {
    /// Reports whether HAProxy wasn't even asked, because this process lacked something: a descriptor, memory, the right
    /// to the socket. Such an error says nothing about HAProxy. (A socket that takes no more connections does.)
    pub fn is_unasked(&self) -> bool {
        use std::io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
        let says_something = |kind| matches!(kind, NotFound | ConnectionRefused | WouldBlock);
        matches!(self, CliError::Unreachable { source, .. } if !says_something(source.kind()))
    }

    pub(super) fn unreadable(command: &str, answer: &str) -> Self {
        CliError::Unreadable { command: command.to_owned(), answer: answer.chars().take(200).collect() }
    }
}

/// A client of the master's command socket.
#[derive(Clone, Debug)]
pub struct Cli {
    path: PathBuf,
}

impl Cli {
    /// Creates a client of this socket, without connecting.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Cli { path: path.into() }
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a command to the master, and returns its answer.
    ///
    /// # Errors
    /// If there is no whole answer.
    pub async fn master(&self, command: &str) -> Result<String, CliError> {
        let mut answers = self.exchange(&[command.to_owned()]).await?;
        Ok(answers.pop().unwrap_or_default())
    }

    /// Sends commands to a worker, and returns the answer to each, in order.
    ///
    /// # Errors
    /// If there is no worker with this process id (earlier commands may have been carried out), or if an answer is
    /// missing.
    pub async fn worker(&self, pid: u32, commands: &[String]) -> Result<Vec<String>, CliError> {
        let mut answers = Vec::with_capacity(commands.len());
        for batch in commands.chunks(BATCH) {
            let lines: Vec<String> = batch.iter().map(|command| format!("@!{pid} {command}")).collect();
            answers.extend(self.exchange(&lines).await?);
        }
        if answers.iter().any(|answer| answer.starts_with("Can't find the target PID")) {
            return Err(CliError::NoWorker(pid));
        }
        Ok(answers)
    }

    /// Reloads HAProxy: the master starts again with the current file, and closes every command connection.
    ///
    /// # Errors
    /// If the master can't be reached.
    pub async fn reload(&self) -> Result<(), CliError> {
        // A reload has no answer; the master just closes the connection.
        match self.exchange(&["reload".to_owned()]).await {
            Ok(_) | Err(CliError::Cut(_) | CliError::Miscounted { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Opens a connection that stays open until the master ends or reloads.
    ///
    /// # Errors
    /// If the master can't be reached.
    pub async fn open(&self) -> Result<UnixStream, CliError> {
        UnixStream::connect(&self.path)
            .await
            .map_err(|source| CliError::Unreachable { path: self.path.clone(), source })
    }

    async fn exchange(&self, lines: &[String]) -> Result<Vec<String>, CliError> {
        let text = timeout(PATIENCE, self.send(lines)).await.map_err(|_| CliError::Silent)??;
        let answers = split_answers(&text);
        if answers.len() != lines.len() {
            // For a worker that has gone, HAProxy gives one answer and closes the connection.
            if let Some(gone) = answers.first().filter(|first| first.starts_with("Can't find the target PID"))
            {
                let pid = gone.rsplit("@!").next().and_then(|rest| rest.trim_end_matches('\'').parse().ok());
                return Err(CliError::NoWorker(pid.unwrap_or(0)));
            }
            return Err(CliError::Miscounted { commands: lines.len(), answers: answers.len() });
        }
        Ok(answers)
    }

    async fn send(&self, lines: &[String]) -> Result<String, CliError> {
        let (mut read, mut write) = self.open().await?.into_split();
        let mut request = lines.join("\n");
        request.push('\n');
        let sending = async {
            write.write_all(request.as_bytes()).await?;
            write.shutdown().await
        };
        let mut answer = Vec::new();
        // Both at once, because HAProxy stops reading commands while its answers aren't read.
        let (sent, received) = tokio::join!(sending, read.read_to_end(&mut answer));
        received.map_err(CliError::Cut)?;
        // A send error doesn't matter if there are answers.
        if let (Err(error), true) = (sent, answer.is_empty()) {
            return Err(CliError::Cut(error));
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// Splits a stream of answers, each of which ends with an empty line.
fn split_answers(text: &str) -> Vec<String> {
    let mut answers = Vec::new();
    let mut answer = String::new();
    for line in text.lines() {
        if line.is_empty() {
            answers.push(std::mem::take(&mut answer));
        } else {
            if !answer.is_empty() {
                answer.push('\n');
            }
            answer.push_str(line);
        }
    }
    if !answer.is_empty() {
        answers.push(answer);
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_ends_with_an_empty_line() {
        assert_eq!(
            split_answers("New server registered.\n\n\n1\n# a b\nc\n\n"),
            ["New server registered.", "", "1\n# a b\nc"]
        );
        assert_eq!(split_answers("no end"), ["no end"]);
        assert!(split_answers("").is_empty());
    }
}
