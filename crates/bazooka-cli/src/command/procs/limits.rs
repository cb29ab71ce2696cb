//! What an instance may use, as it is said on the command line.
//!
//! Owns the least that makes sense: below it no program starts, and the instance would only crash.

/// The least memory: a shell and a small program.
const LEAST_MEMORY: u64 = 8 << 20;

/// The least processor, in thousandths: the kernel gives no less.
const LEAST_CPU: u32 = 10;

/// The most processor, in thousandths: of more a machine has none.
const MOST_CPU: f64 = 1_000_000.0;

/// The fewest processes: a shell, its command, and what that calls.
const LEAST_PIDS: u32 = 4;

/// A limit, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit<T>(pub Option<T>);

/// `256M`, `1G`, `none`.
pub fn memory(word: &str) -> Result<Limit<u64>, String> {
    limited(word, |word| {
        let (number, unit) = word.split_at(word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len()));
        let shift = match unit.to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KB" | "KIB" => 10,
            "M" | "MB" | "MIB" => 20,
            "G" | "GB" | "GIB" => 30,
            "T" | "TB" | "TIB" => 40,
            _ => return Err("a size such as 256M or 1G is wanted, or none".to_owned()),
        };
        let number: u64 =
            number.parse().map_err(|_| "a size such as 256M or 1G is wanted, or none".to_owned())?;
        let bytes = number.checked_mul(1 << shift).ok_or("it is more than any machine has")?;
        if bytes < LEAST_MEMORY {
            return Err("no program starts with less than 8M".to_owned());
        }
        Ok(bytes)
    })
}

/// `0.5`, `2`, `none`: in thousandths of a processor.
pub fn cpu(word: &str) -> Result<Limit<u32>, String> {
    limited(word, |word| {
        let wanted = || "a number of processors such as 0.5 or 2 is wanted, or none".to_owned();
        let millis = word.parse::<f64>().map_err(|_| wanted())? * 1_000.0;
        if !(0.0..=MOST_CPU).contains(&millis) {
            return Err(wanted());
        }
        // It is in range, and a part of a thousandth is nothing.
        let millis = millis.round() as u32;
        if millis < LEAST_CPU {
            Err("no program gets anywhere with less than 0.01".to_owned())
        } else {
            Ok(millis)
        }
    })
}

/// `200`, `none`.
pub fn pids(word: &str) -> Result<Limit<u32>, String> {
    limited(word, |word| match word.parse() {
        Ok(number) if number < LEAST_PIDS => Err("no program starts with fewer than 4".to_owned()),
        Ok(number) if number <= 4_194_304 => Ok(number),
        _ => Err("a number of processes such as 200 is wanted, or none".to_owned()),
    })
}

fn limited<T>(word: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Limit<T>, String> {
    if word == "none" { Ok(Limit(None)) } else { parse(word).map(|limit| Limit(Some(limit))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_said_in_the_usual_units() {
        for (word, bytes) in
            [("256M", 256 << 20), ("1g", 1 << 30), ("8388608", 8 << 20), ("9000KiB", 9000 << 10)]
        {
            assert_eq!(memory(word), Ok(Limit(Some(bytes))), "{word}");
        }
        for (word, millis) in [("0.5", 500), ("2", 2_000), ("0.01", 10), (".25", 250)] {
            assert_eq!(cpu(word), Ok(Limit(Some(millis))), "{word}");
        }
        assert_eq!(pids("200"), Ok(Limit(Some(200))));
        assert_eq!(
            (memory("none"), cpu("none"), pids("none")),
            (Ok(Limit(None)), Ok(Limit(None)), Ok(Limit(None)))
        );
    }

    #[test]
    fn what_no_program_could_live_with_is_refused() {
        for word in ["", "1M", "0", "-1", "M", "1.5G", "99999999T", "256 M"] {
            assert!(memory(word).is_err(), "{word}");
        }
        for word in ["", "0", "-1", "0.001", "NaN", "inf", "x", "1e9"] {
            assert!(cpu(word).is_err(), "{word}");
        }
        for word in ["", "0", "3", "-1", "1.5", "99999999999"] {
            assert!(pids(word).is_err(), "{word}");
        }
    }
}
