//! The runner of a build's steps, which streams their output to the pusher.
//!
//! Owns the steps' processes: none is left after a run returns or is dropped, or bazooka-rm itself ends.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io,
    os::fd::OwnedFd,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bazooka_sandbox::{
    protocol::{ExitRecord, LaunchSpec},
    shim::in_words,
};
use nix::fcntl::OFlag;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::unix::pipe,
    process::{Child, ChildStdin, Command},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    BuildError, files,
    place::Place,
    supervisor::{self, Answer},
};
use crate::voice::Voice;

/// The length, in bytes, beyond which a line is split.
const MAX_LINE: usize = 4096;

/// The amount of a build's output that is passed on, in bytes. Nobody reads more, and each line costs the pusher's
/// network.
pub const MAX_OUTPUT_BYTES: u64 = 16 << 20;

/// The longest answer of a step that is asked something, in bytes.
const MAX_ANSWER: u64 = 4 << 20;

/// The runner of one build's steps.
pub struct Runner<'a> {
    /// The path of this program, which also supervises steps.
    own_program: &'a Path,
    /// The place where the steps run.
    place: &'a Place,
    /// The receiver of the steps' output.
    voice: &'a Voice,
    /// Cancelled when the pusher has left.
    cancelled: &'a CancellationToken,
    /// When the build times out.
    deadline: Instant,
    /// The build's whole time limit, for the error message.
    limit: Duration,
    output: Arc<Output>,
}

/// The shortest value of a config var that is kept out of the output; a shorter one is part of many words.
const LEAST_MASKED: usize = 6;

/// The state of a build's output.
#[derive(Default)]
struct Output {
    /// The values that no line may show, longest first, each with what stands for it.
    masks: Vec<(String, String)>,
    bytes: AtomicU64,
    is_told: AtomicBool,
}

impl Output {
    /// Returns the output of steps that see these config vars: no line of it shows a value, or a line of one.
    fn masking(vars: &BTreeMap<String, String>) -> Output {
        let lines = vars.iter().flat_map(|(name, value)| value.lines().map(move |line| (name, line.trim())));
        let long = lines.filter(|(_, line)| line.len() >= LEAST_MASKED);
        let mut masks: Vec<(String, String)> =
            long.map(|(name, line)| (line.to_owned(), format!("[{name}]"))).collect();
        masks.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        Output { masks, ..Output::default() }
    }

    /// Returns a line for the pusher.
    fn line(&self, bytes: &[u8]) -> String {
        let line = String::from_utf8_lossy(bytes).into_owned();
        self.masks.iter().fold(line, |line, (value, name)| line.replace(value, name))
    }
}

impl<'a> Runner<'a> {
    /// Returns a runner of steps in a place. Their common time limit begins now.
    pub fn new(
        own_program: &'a Path,
        place: &'a Place,
        voice: &'a Voice,
        cancelled: &'a CancellationToken,
        limit: Duration,
    ) -> Runner<'a> {
        let (deadline, output) = (Instant::now() + limit, Arc::new(Output::masking(place.vars())));
        Runner { own_program, place, voice, cancelled, deadline, limit, output }
    }

    /// Returns a runner of the same build in another place. The time limit stays as it is.
    pub fn at<'b>(&self, place: &'b Place) -> Runner<'b>
    where
        'a: 'b,
    {
        Runner { place, output: self.output.clone(), ..*self }
    }

    /// Runs a step and waits until none of its processes is left.
    ///
    /// # Errors
    /// [`BuildError::Failed`], [`BuildError::TimedOut`], [`BuildError::Cancelled`], [`BuildError::NotStarted`].
    ///
    /// # Cancel safety
    /// If this is dropped, the step is ended in the background.
    pub async fn run<S: AsRef<OsStr>>(&self, program: &Path, args: &[S]) -> Result<(), BuildError> {
        self.run_in(self.place, program, args).await
    }

    /// Runs a program of PATH as a step, and tells the pusher its command, like [`Runner::run`].
    ///
    /// # Errors
    /// Those of [`Runner::run`].
    pub async fn step(&self, program: &str, words: &[&str]) -> Result<(), BuildError> {
        self.voice.say(format!("$ {program} {}", words.join(" "))).await;
        self.run(Path::new(program), words).await
    }

    /// Runs a step in another place than the build's own, like [`Runner::run`].
    ///
    /// # Errors
    /// Those of [`Runner::run`].
    pub async fn run_in<S: AsRef<OsStr>>(
        &self,
        place: &Place,
        program: &Path,
        args: &[S],
    ) -> Result<(), BuildError> {
        let hear = |output| stream(output, |line| Some(line.to_owned()), self.voice, &self.output);
        self.supervise(place, program, args, hear).await
    }

    /// Runs a step like [`Runner::run`], and passes its lines to the pusher as `change` has them, or not at all.
    ///
    /// # Errors
    /// Those of [`Runner::run`].
    pub async fn run_changed<S: AsRef<OsStr>>(
        &self,
        program: &Path,
        args: &[S],
        change: impl FnMut(&str) -> Option<String>,
    ) -> Result<(), BuildError> {
        let hear = |output| stream(output, change, self.voice, &self.output);
        self.supervise(self.place, program, args, hear).await
    }

    /// Runs a short step in a place, and returns its output instead of passing it to the pusher.
    ///
    /// # Errors
    /// Those of [`Runner::run`].
    pub async fn ask<S: AsRef<OsStr>>(
        &self,
        place: &Place,
        program: &Path,
        args: &[S],
    ) -> Result<String, BuildError> {
        let hear = |output: pipe::Receiver| async {
            let mut said = Vec::new();
            // An answer that breaks off counts as far as it was read; the step's end shows the failure.
            let _ = output.take(MAX_ANSWER).read_to_end(&mut said).await;
            String::from_utf8_lossy(&said).into_owned()
        };
        self.supervise(place, program, args, hear).await
    }

    async fn supervise<S: AsRef<OsStr>, T, F: Future<Output = T>>(
        &self,
        place: &Place,
        program: &Path,
        args: &[S],
        hear: impl FnOnce(pipe::Receiver) -> F,
    ) -> Result<T, BuildError> {
        let words = std::iter::once(program.as_os_str()).chain(args.iter().map(AsRef::as_ref));
        let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        let not_started = |error: io::Error| BuildError::NotStarted(error.to_string());
        let started = start(self.own_program, &place.spec(&words)).await.map_err(not_started)?;
        let Started { mut supervisor, life, output } = started;
        let heard = async {
            let heard = hear(output).await;
            (heard, answer(&mut supervisor).await)
        };
        let ended = tokio::select! {
            ended = timeout_at(self.deadline, heard) => ended.map_err(|_| BuildError::TimedOut(self.limit)),
            () = self.cancelled.cancelled() => Err(BuildError::Cancelled),
        };
        drop(life);
        match ended {
            Ok((heard, answer)) => verdict(words.join(" "), answer.map_err(not_started)?).map(|()| heard),
            Err(error) => {
                // The supervisor kills the step now and gives no answer that matters.
                let _ = supervisor.wait().await;
                Err(error)
            }
        }
    }

    /// Acts on files that the build could write, as one of its steps: see [`files`].
    ///
    /// # Errors
    /// Those of [`Runner::run`]; `what` names the action in the message.
    pub async fn files<S: AsRef<OsStr>>(&self, what: &str, words: &[S]) -> Result<(), BuildError> {
        let words: Vec<&OsStr> =
            std::iter::once(OsStr::new(files::WORD)).chain(words.iter().map(AsRef::as_ref)).collect();
        self.run(self.own_program, &words).await.map_err(|error| match error {
            BuildError::Failed { how, .. } => BuildError::Faulty(format!("{what} {how}")),
            other => other,
        })
    }
}

/// A running step.
struct Started {
    supervisor: Child,
    /// The supervisor's input; when it closes, the supervisor ends the step.
    life: ChildStdin,
    output: pipe::Receiver,
}

async fn start(own_program: &Path, spec: &LaunchSpec) -> io::Result<Started> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let mut command = Command::new(own_program);
    command.arg0(supervisor::NAME).env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(write);
    let mut supervisor = command.spawn()?;
    // Closes this process's copy of the pipe's writing end, so that the output ends with the step.
    drop(command);
    let mut life = supervisor.stdin.take().expect("it is piped");
    let mut line = serde_json::to_vec(spec)?;
    line.push(b'\n');
    life.write_all(&line).await?;
    Ok(Started { supervisor, life, output: receiver(read)? })
}

fn receiver(read: OwnedFd) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(read)
}

async fn answer(supervisor: &mut Child) -> io::Result<Answer> {
    let mut said = Vec::new();
    supervisor.stdout.as_mut().expect("it is piped").read_to_end(&mut said).await?;
    let status = supervisor.wait().await?;
    serde_json::from_slice(&said)
        .map_err(|_| io::Error::other(format!("its supervisor gave no answer ({status})")))
}

/// The reasons why nothing runs in a place.
#[derive(Debug, thiserror::Error)]
pub enum TryOutError {
    /// The supervisor can't be started or gives no answer.
    #[error(transparent)]
    Supervisor(#[from] io::Error),
    /// The command failed.
    #[error("what was tried in it {}", in_words(.0))]
    Ended(ExitRecord),
    /// The command can't be started; with the supervisor's words.
    #[error("{0}")]
    NotStarted(String),
}

/// Runs `true` in a place and waits for its end.
///
/// # Errors
/// [`TryOutError`].
pub async fn try_out(own_program: &Path, place: &Place) -> Result<(), TryOutError> {
    let mut started = start(own_program, &place.spec(&["true".to_owned()])).await?;
    let mut said = String::new();
    started.output.read_to_string(&mut said).await?;
    match answer(&mut started.supervisor).await? {
        Answer::Ended(ExitRecord { code: Some(0), .. }) => Ok(()),
        Answer::Ended(exit) => Err(TryOutError::Ended(exit)),
        Answer::Failed(cause) => Err(TryOutError::NotStarted(cause)),
    }
}

fn verdict(step: String, answer: Answer) -> Result<(), BuildError> {
    match answer {
        Answer::Ended(ExitRecord { code: Some(0), .. }) => Ok(()),
        Answer::Ended(exit) => Err(BuildError::Failed { step, how: in_words(&exit) }),
        Answer::Failed(cause) => Err(BuildError::NotStarted(cause)),
    }
}

/// Passes each line of the output to the pusher as it comes. A carriage return ends a line too: progress bars become
/// lines. Output beyond the limit is read and dropped, so that the build doesn't block.
async fn stream(
    output: impl AsyncRead + Unpin,
    mut change: impl FnMut(&str) -> Option<String>,
    voice: &Voice,
    known: &Output,
) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while let Ok(buffer) = output.fill_buf().await {
        if buffer.is_empty() {
            break;
        }
        let end = buffer.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let taken = end.unwrap_or(buffer.len());
        let is_kept = !known.is_told.load(Ordering::Relaxed);
        if is_kept {
            line.extend_from_slice(&buffer[..taken]);
        }
        let taken = taken + usize::from(end.is_some());
        output.consume(taken);
        if known.bytes.fetch_add(taken as u64, Ordering::Relaxed) + taken as u64 > MAX_OUTPUT_BYTES {
            line.clear();
            if !known.is_told.swap(true, Ordering::Relaxed) {
                let most = MAX_OUTPUT_BYTES >> 20;
                voice.say(format!("(the build has printed {most} MiB; the rest is left out)")).await;
            }
        } else if (end.is_some() && !line.is_empty()) || line.len() > MAX_LINE {
            if let Some(changed) = change(&known.line(&line)) {
                voice.say(changed).await;
            }
            line.clear();
        }
    }
    if let Some(changed) = change(&known.line(&line)).filter(|_| !line.is_empty()) {
        voice.say(changed).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns all lines passed on for an output that comes in pieces.
    async fn said(pieces: &[&[u8]]) -> Vec<String> {
        let (voice, mut lines) = Voice::new();
        let heard = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Some(line) = lines.recv().await {
                all.push(line);
            }
            all
        });
        let known = Output::default();
        for piece in pieces {
            stream(*piece, |line| Some(line.to_owned()), &voice, &known).await;
        }
        drop(voice);
        heard.await.expect("it runs")
    }

    #[tokio::test]
    async fn a_flood_is_cut_once_whichever_step_it_comes_from() {
        let most = usize::try_from(MAX_OUTPUT_BYTES).expect("it fits");
        let flood = [b"0123456789abcde\n".repeat(most / 16 - 1), b"a last line\n".to_vec()].concat();
        let lines = said(&[&flood, b"ok\n", b"more\n", b"still more"]).await;
        assert_eq!(lines.len(), most / 16 + 2, "{:?}", lines.last());
        let end: Vec<&str> = lines[lines.len() - 3..].iter().map(String::as_str).collect();
        assert_eq!(end, ["a last line", "ok", "(the build has printed 16 MiB; the rest is left out)"]);
    }

    #[test]
    fn the_value_of_a_config_var_is_in_no_line() {
        let vars = [("TOKEN", "hunter22"), ("KEY", "first line\nhunter22-more\n"), ("SHORT", "true")];
        let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let output = Output::masking(&BTreeMap::from(vars));
        let line = output.line(b"GET https://x:hunter22@y and hunter22-more: true");
        assert_eq!(line, "GET https://x:[TOKEN]@y and [KEY]: true");
    }

    #[tokio::test]
    async fn a_line_comes_whole_and_a_very_long_one_in_pieces() {
        let long = b"x".repeat(3 * MAX_LINE);
        let lines = said(&[b"a\rb\n\n", &long]).await;
        assert_eq!(lines[..2], ["a", "b"]);
        assert!(lines.len() > 2 && lines.iter().all(|line| line.len() <= 2 * MAX_LINE));
    }
}
