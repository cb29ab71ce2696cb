//! Builds compared on one machine: their programs take turns, run by run.

use std::{collections::BTreeMap, path::PathBuf};

use bazooka_tests::use_programs;

use crate::{Bench, Size, Value};

/// How many rollouts a run counts over. One of them takes a reload.
const ROLLOUTS: usize = 3;

/// The figures of a row, by build.
#[derive(Default)]
struct Figures {
    what: String,
    by_build: BTreeMap<usize, Vec<Value>>,
}

/// Measures the benches with the programs of each folder in turn, and tells medians, extremes and ratios as a table. Of lost
/// requests the sum counts.
pub fn compare(benches: &[Bench], folders: &[PathBuf], size: &Size) -> String {
    let once = Size { runs: 1, rollouts: ROLLOUTS, ..size.clone() };
    let mut figures: BTreeMap<(usize, usize), Figures> = BTreeMap::new();
    for run in 0..size.runs {
        for (nth, bench) in benches.iter().enumerate() {
            // Whatever wears off or warms up does so for each of them: they go first in turn.
            let order = (0..folders.len()).map(|at| (at + run) % folders.len());
            for build in order {
                use_programs(Some(&folders[build]));
                for (at, row) in bench.measure(&once).into_iter().enumerate() {
                    eprintln!(
                        "run {}: {}: {}: {}: {}",
                        run + 1,
                        folders[build].display(),
                        bench.name,
                        row.what,
                        row.figure
                    );
                    let Some(value) = row.value else { continue };
                    let figures = figures.entry((nth, at)).or_default();
                    figures.what = format!("| `{}` | {} |", bench.name, row.what);
                    figures.by_build.entry(build).or_default().push(value);
                }
            }
        }
    }
    let heads: Vec<String> = folders.iter().map(|folder| format!(" {} |", folder.display())).collect();
    let ratios: Vec<String> =
        (1..folders.len()).map(|n| format!(" column {} to column 1 |", n + 1)).collect();
    let columns = 2 + heads.len() + ratios.len();
    let head =
        format!("| bench | what |{}{}\n|{}\n", heads.concat(), ratios.concat(), "---|".repeat(columns));
    figures.values().fold(head, |table, figures| table + &line(figures) + "\n")
}

fn line(figures: &Figures) -> String {
    let told: Vec<Summary> = figures.by_build.values().map(|values| Summary::of(values)).collect();
    let cells: Vec<String> = told.iter().map(|told| format!(" {} |", told.text)).collect();
    let ratios = told.iter().skip(1).map(|own| match told[0].number {
        0.0 => " - |".to_owned(),
        first => format!(" {:.3} |", own.number / first),
    });
    format!("{}{}{}", figures.what, cells.concat(), ratios.collect::<String>())
}

/// What stands in a cell.
struct Summary {
    number: f64,
    text: String,
}

impl Summary {
    fn of(values: &[Value]) -> Summary {
        let lost: Vec<u64> = values
            .iter()
            .filter_map(|value| if let Value::Lost(n) = value { Some(*n) } else { None })
            .collect();
        if !lost.is_empty() {
            let sum = Value::Lost(lost.iter().sum());
            return Summary { number: sum.number(), text: format!("{sum} in {} runs", lost.len()) };
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(|a, b| a.number().total_cmp(&b.number()));
        let (least, middle, most) = (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        Summary { number: middle.number(), text: format!("{middle} ({least} to {most})") }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn medians_stand_side_by_side() {
        let times = |ms: [u64; 3]| ms.map(|ms| Value::Time(Duration::from_millis(ms))).to_vec();
        let figures = Figures {
            what: "| `push` | p |".into(),
            by_build: [(0, times([200, 100, 400])), (1, times([100, 100, 900]))].into(),
        };
        let wanted =
            "| `push` | p | 0.2000 s (0.1000 s to 0.4000 s) | 0.1000 s (0.1000 s to 0.9000 s) | 0.500 |";
        assert_eq!(line(&figures), wanted);
    }

    #[test]
    fn each_lost_request_counts() {
        let lost = [0, 2, 1].map(Value::Lost);
        let figures =
            Figures { what: "|".into(), by_build: [(0, lost.to_vec()), (1, vec![Value::Lost(0)])].into() };
        assert_eq!(line(&figures), "| 3 lost in 3 runs | 0 lost in 1 runs | 0.000 |");
    }
}
