//! The rows of the tables: how they are printed, and written into a page.
//!
//! A page's tables stand between a comment `<!-- bench: TITLE -->` and the next comment. A row's first cell names its bench.
//! Writing replaces the rows of the benches that ran where their old ones stand; all else of the page stays as it is.

use std::{collections::BTreeMap, fmt, path::Path, time::Duration};

use anyhow::{Context as _, ensure};

/// The head of a printed table.
const HEAD: &str =
    "| bench | what | target | measured | floor, same run | when, where |\n|---|---|---|---|---|---|";

/// A row of a table.
#[derive(Clone, Debug)]
pub struct Row {
    /// The figure as a number, where two builds are compared by it.
    pub value: Option<Value>,
    /// What is measured.
    pub what: String,
    /// What it is to be.
    pub target: String,
    /// What it is.
    pub figure: String,
    /// What it is compared with, measured in the same run.
    pub floor: String,
}

/// A figure.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum Value {
    /// A time.
    Time(Duration),
    /// An amount of memory.
    Mebibytes(f64),
    /// A rate.
    PerSecond(f64),
    /// Requests that were lost.
    Lost(u64),
}

impl Value {
    /// The number alone.
    pub fn number(self) -> f64 {
        match self {
            Value::Time(time) => time.as_secs_f64(),
            Value::Mebibytes(number) | Value::PerSecond(number) => number,
            #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
            Value::Lost(count) => count as f64,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Time(time) => write!(f, "{:.4} s", time.as_secs_f64()),
            Value::Mebibytes(number) => write!(f, "{number:.2} MiB"),
            Value::PerSecond(number) => write!(f, "{number:.0}/s"),
            Value::Lost(count) => write!(f, "{count} lost"),
        }
    }
}

/// A number with commas between thousands.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// When and where figures were taken, for their last cell.
pub fn origin(runs: usize) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpu, memory, kernel) =
        (read("/proc/cpuinfo"), read("/proc/meminfo"), read("/proc/sys/kernel/osrelease"));
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kib: u64 = field(&memory, "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let day = jiff::Zoned::now().date();
    let often = if runs == 5 { String::new() } else { format!(", {runs} runs") };
    format!(
        "{day}, {}, {cores} cores, {} GiB, Linux {}{often}",
        field(&cpu, "model name"),
        (kib + (1 << 19)) >> 20,
        kernel.trim()
    )
}

fn line(bench: &str, row: &Row, origin: &str) -> String {
    let Row { what, target, figure, floor, .. } = row;
    format!("| `{bench}` | {what} | {target} | {figure} | {floor} | {origin} |")
}

/// The table of what was measured, as text.
pub fn text(measured: &[(&str, Vec<Row>)], origin: &str) -> String {
    let rows = measured.iter().flat_map(|(bench, rows)| rows.iter().map(|row| line(bench, row, origin)));
    std::iter::once(HEAD.to_owned()).chain(rows).map(|line| line + "\n").collect()
}

/// The bench that a line of a table names.
fn bench_of(line: &str) -> Option<&str> {
    line.strip_prefix("| `")?.split_once("` |").map(|(bench, _)| bench)
}

/// A page whose tables the bench program writes.
pub struct Page {
    text: String,
}

impl Page {
    /// Reads a page.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn read(path: &Path) -> anyhow::Result<Page> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(Page { text })
    }

    /// Whether a table of the page has rows of a bench.
    pub fn has(&self, bench: &str) -> bool {
        let mut in_table = false;
        self.text.lines().any(|line| {
            if line.starts_with("<!--") {
                in_table = line.starts_with("<!-- bench:");
            }
            in_table && bench_of(line) == Some(bench)
        })
    }

    /// The page with the rows of these benches in the place of their old ones.
    ///
    /// # Errors
    /// If a bench has no row in a table of the page.
    pub fn with(&self, measured: &[(&str, Vec<Row>)], origin: &str) -> anyhow::Result<String> {
        let rows: BTreeMap<&str, &Vec<Row>> = measured.iter().map(|(bench, rows)| (*bench, rows)).collect();
        let mut written: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut text, mut in_table) = (String::new(), false);
        for old in self.text.lines() {
            if old.starts_with("<!--") {
                in_table = old.starts_with("<!-- bench:");
            }
            match bench_of(old).filter(|_| in_table).and_then(|bench| rows.get_key_value(bench)) {
                Some((bench, rows)) => {
                    let times = written.entry(bench).or_default();
                    *times += 1;
                    if *times == 1 {
                        rows.iter().for_each(|row| text += &(line(bench, row, origin) + "\n"));
                    }
                }
                None => text += &format!("{old}\n"),
            }
        }
        let missing: Vec<&str> = rows.keys().copied().filter(|bench| !written.contains_key(bench)).collect();
        ensure!(
            missing.is_empty(),
            "no table of the page has a row of {missing:?}; hint: add one that begins with | `{}` |",
            missing[0]
        );
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "| `push` | not in a table |\n\n<!-- bench: one -->\n| bench | what |\n|---|---|\n| `push` | old |\n\
                        | `memory` | a |\n| `memory` | b |\n<!-- /bench -->\n| `memory` | text |\n";

    fn row(what: &str) -> Row {
        Row { value: None, what: what.into(), target: "t".into(), figure: "f".into(), floor: "b".into() }
    }

    #[test]
    fn rows_replace_those_of_their_bench_and_nothing_else() {
        let page = Page { text: PAGE.into() };
        let measured = [("memory", vec![row("x"), row("y"), row("z")])];
        let lines =
            ["x", "y", "z"].map(|what| format!("| `memory` | {what} | t | f | b | today |\n")).concat();
        let wanted = PAGE.replace("| `memory` | a |\n| `memory` | b |\n", &lines);
        assert_eq!(page.with(&measured, "today").expect("it has them"), wanted);
    }

    #[test]
    fn a_bench_that_the_page_does_not_have_is_told() {
        let page = Page { text: PAGE.into() };
        let error = page.with(&[("kill", vec![row("x")])], "today").expect_err("it has none");
        assert!(error.to_string().contains(r#"["kill"]"#), "{error}");
    }

    #[test]
    fn numbers_have_commas() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
