//! The environment and the command line of an instance's process. Pure, except that it looks which folders a slug has and
//! how many processors there are.

use std::{collections::BTreeMap, path::Path, thread::available_parallelism};

use visor::{
    names::{HostName, InstanceId},
    schema::{Assignment, Limits},
};

use super::runtime::Given;

/// Folders of a slug that hold programs. Those that exist come first in PATH.
const PROGRAMS: [&str; 3] = [".venv/bin", "node_modules/.bin", "bin"];

/// The folder of a slug whose scripts the shell reads before it runs the command.
const PROFILES: &str = ".profile.d";

/// The system's part of PATH.
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The folders of an instance.
pub struct Places<'a> {
    /// The slug, at the path that the instance sees.
    pub app: &'a Path,
    /// The instance's HOME.
    pub home: &'a Path,
    /// The instance's TMPDIR.
    pub tmp: &'a Path,
}

/// Returns the whole environment. The platform's own variables override the app's vars, so that no var can pose as one
/// of them.
pub fn environment(
    host: &HostName,
    id: InstanceId,
    assignment: &Assignment,
    given: Given<'_>,
    port: u16,
    slug: &Path,
    places: &Places<'_>,
) -> BTreeMap<String, String> {
    let mut path: Vec<String> = PROGRAMS
        .iter()
        .filter(|folder| slug.join(folder).is_dir())
        .map(|folder| places.app.join(folder).display().to_string())
        .collect();
    path.push(SYSTEM_PATH.to_owned());
    let place = |path: &Path| path.display().to_string();
    let defaults = [
        ("PATH", path.join(":")),
        ("HOME", place(places.home)),
        ("TMPDIR", place(places.tmp)),
        // Without it, many programs take text for ASCII.
        ("LANG", "C.UTF-8".to_owned()),
        // Without it, Python keeps what is printed until it has some kilobytes; an app may be a script without a language's
        // files.
        ("PYTHONUNBUFFERED", "1".to_owned()),
    ];
    let fixed = [
        ("PORT", port.to_string()),
        ("BAZOOKA_APP", assignment.app.to_string()),
        ("BAZOOKA_PROC", assignment.proc.to_string()),
        ("BAZOOKA_REV", assignment.rev.to_string()),
        ("BAZOOKA_RELEASE", assignment.release.to_string()),
        ("BAZOOKA_INSTANCE", id.to_string()),
        ("BAZOOKA_INDEX", assignment.index.to_string()),
        ("BAZOOKA_HOST", host.to_string()),
    ];
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    all.extend(defaults.map(|(name, value)| (name.to_owned(), value)));
    // A machine that does not tell has one.
    let processors = available_parallelism().map_or(1, |n| u64::try_from(n.get()).unwrap_or(u64::MAX));
    all.extend(of_limits(&assignment.run.limits, processors));
    // A name with `=` or a value with NUL can't be passed on at all.
    let passable = |(name, value): &(&String, &String)| {
        !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
    };
    let vars = given.vars.as_map().iter().filter(passable);
    all.extend(vars.map(|(name, value)| (name.clone(), value.clone())));
    all.extend(given.services.clone());
    all.extend(fixed.map(|(name, value)| (name.to_owned(), value)));
    all
}

/// The memory of one process of a web server, as Heroku reckons.
const MEMORY_OF_A_PROCESS: u64 = 256 << 20;

/// Returns the variables that tell an instance its memory limit, and how many processes of a web server fit; none without
/// that limit.
fn of_limits(limits: &Limits, processors: u64) -> BTreeMap<String, String> {
    let Some(memory) = limits.memory_limit_bytes else { return BTreeMap::new() };
    let processors = match limits.cpu_limit_millis {
        Some(millis) => processors.min(u64::from(millis).div_ceil(1_000)),
        None => processors,
    };
    let fit = (memory / MEMORY_OF_A_PROCESS).min(2 * processors + 1).max(1);
    [("MEMORY_LIMIT_BYTES", memory), ("WEB_CONCURRENCY", fit)]
        .map(|(name, value)| (name.to_owned(), value.to_string()))
        .into()
}

/// Returns the line for the instance's shell: it reads the slug's `.profile.d/*.sh` in the order of their names, as
/// Heroku's does, and then runs the command.
///
/// A command that is one program replaces the shell, so that signals reach it and its end is the instance's. Bash does
/// that by itself unless there are redirections, and other shells don't. After scripts the command may be a function of
/// theirs, which nothing can replace.
pub fn line(command: &str, slug: &Path) -> String {
    if !slug.join(PROFILES).is_dir() {
        return match program_at(command) {
            Some(at) => format!("{}exec {}", &command[..at], &command[at..]),
            None => command.to_owned(),
        };
    }
    // No config var has a name that begins so.
    let each = r#"if [ -r "$BAZOOKA_PROFILE" ]; then . "./$BAZOOKA_PROFILE"; fi"#;
    format!("for BAZOOKA_PROFILE in {PROFILES}/*.sh; do {each}; done; unset BAZOOKA_PROFILE; {command}")
}

/// Words that a shell takes for its own and not for a program, where they begin a command.
const OF_THE_SHELL: &[&str] = &[
    ".", ":", "[", "[[", "alias", "bg", "break", "builtin", "case", "cd", "command", "continue", "coproc",
    "declare", "dirs", "do", "done", "elif", "else", "enable", "esac", "eval", "exec", "exit", "export",
    "fc", "fg", "fi", "for", "function", "getopts", "hash", "help", "if", "in", "jobs", "let", "local",
    "popd", "pushd", "read", "readonly", "return", "select", "set", "shift", "shopt", "source", "test",
    "then", "time", "times", "trap", "type", "typeset", "ulimit", "umask", "unalias", "unset", "until",
    "wait", "while",
];

/// Returns where the program begins in a command that is one program with its arguments, after its assignments; none if
/// the command is more than that, or can't be told.
fn program_at(command: &str) -> Option<usize> {
    let words = words(command)?;
    let is_assignment = |word: &str| {
        let name = word.split_once('=').map_or("", |(name, _)| name);
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let (at, program) = words.into_iter().find(|(_, word)| !is_assignment(word))?;
    let is_plain = program.chars().all(|c| c.is_ascii_alphanumeric() || "/._+-@".contains(c));
    (is_plain && !OF_THE_SHELL.contains(&program)).then_some(at)
}

/// Returns the words of a command with the places where they begin; none if it may be more than one command.
fn words(command: &str) -> Option<Vec<(usize, &str)>> {
    let (mut words, mut begun, mut quote) = (Vec::new(), None, None);
    let mut before = ' ';
    let mut letters = command.char_indices().peekable();
    while let Some((at, letter)) = letters.next() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (Some('\''), _) => {}
            (_, '`' | '(') => return None,
            (_, '\\') => drop(letters.next()?),
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(letter),
            // A descriptor is named in a redirection alone.
            (None, '&') if before == '>' || letters.peek().is_some_and(|(_, next)| *next == '>') => {}
            (None, ';' | '&' | '|' | ')' | '\n' | '#' | '!') => return None,
            (None, '<') if before == '<' => return None,
            (None, _) => {}
        }
        let is_blank = quote.is_none() && matches!(letter, ' ' | '\t');
        match begun {
            None if !is_blank => begun = Some(at),
            Some(begin) if is_blank => {
                words.push((begin, &command[begin..at]));
                begun = None;
            }
            _ => {}
        }
        before = letter;
    }
    words.extend(begun.map(|begin| (begin, &command[begin..])));
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_limit_is_told_with_the_processes_that_fit() {
        let told = |memory_limit_bytes, cpu_limit_millis, processors| {
            let limits = Limits { memory_limit_bytes, cpu_limit_millis, ..Limits::default() };
            of_limits(&limits, processors).into_values().collect::<Vec<_>>()
        };
        assert!(told(None, Some(500), 8).is_empty());
        for (mebibytes, millis, processors, fit) in [
            (128, None, 4, "1"),
            (512, None, 4, "2"),
            (1_024, None, 4, "4"),
            (4_096, None, 4, "9"),
            (4_096, Some(500), 4, "3"),
            (4_096, Some(1_500), 4, "5"),
            (4_096, Some(8_000), 2, "5"),
        ] {
            let bytes = mebibytes << 20;
            assert_eq!(told(Some(bytes), millis, processors), [bytes.to_string(), fit.to_owned()]);
        }
    }

    #[test]
    fn a_command_that_is_one_program_replaces_the_shell() {
        let slug = tempfile::tempdir().expect("a folder");
        for (command, wanted) in [
            ("node server.js", "exec node server.js"),
            ("  ./run --port $PORT", "  exec ./run --port $PORT"),
            ("A=1 B='x y' node .", "A=1 B='x y' exec node ."),
            ("python3 -c 'import os; os.wait()'", "exec python3 -c 'import os; os.wait()'"),
            (r#"sh -c "a && b""#, r#"exec sh -c "a && b""#),
            (r"run a\;b", r"exec run a\;b"),
            ("run > log 2>&1", "exec run > log 2>&1"),
            ("run &> log", "exec run &> log"),
            ("run \"${HOST:-x}\"", "exec run \"${HOST:-x}\""),
            ("a; b", "a; b"),
            ("a && b", "a && b"),
            ("a | b", "a | b"),
            ("a &", "a &"),
            ("a\nb", "a\nb"),
            ("(a)", "(a)"),
            ("run $(nproc)", "run $(nproc)"),
            ("run `nproc`", "run `nproc`"),
            ("run <<EOF", "run <<EOF"),
            ("cd x", "cd x"),
            ("exec a", "exec a"),
            ("while :", "while :"),
            ("{ a", "{ a"),
            ("$RUN it", "$RUN it"),
            ("! a", "! a"),
            ("'unfinished", "'unfinished"),
            ("A=1", "A=1"),
            ("", ""),
        ] {
            assert_eq!(line(command, slug.path()), wanted);
        }
        std::fs::create_dir(slug.path().join(PROFILES)).expect("there is room");
        assert!(line("serve", slug.path()).ends_with("; serve"), "it may be a function");
    }
}
