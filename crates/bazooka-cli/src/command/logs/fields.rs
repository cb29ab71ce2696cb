//! The fields of structured lines, and the condition of `--where`.
//!
//! A line is structured if it is a JSON object, or `key=value` pairs and nothing else (logfmt). Pure.

use std::str::FromStr;

use serde_json::{Map, Value};

/// The names under which programs write the level of a line.
const LEVELS: [&str; 5] = ["level", "severity", "lvl", "levelname", "log.level"];

/// The numbers that stand for levels, as Bunyan and Pino write them.
const NUMBERED: [(&str, &str); 6] =
    [("10", "trace"), ("20", "debug"), ("30", "info"), ("40", "warn"), ("50", "error"), ("60", "fatal")];

/// The words for one level.
const ALIKE: [(&str, &str); 4] =
    [("warning", "warn"), ("err", "error"), ("critical", "fatal"), ("information", "info")];

/// Returns the fields of a line; none if it has none.
pub fn fields(line: &str) -> Option<Map<String, Value>> {
    let line = line.trim();
    if line.starts_with('{') { serde_json::from_str(line).ok() } else { logfmt(line) }
}

/// Parses pairs. A single one is a plain text more often than a record.
fn logfmt(line: &str) -> Option<Map<String, Value>> {
    let mut fields = Map::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let is_key = key.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '@'))
            && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '@'));
        if !is_key {
            return None;
        }
        let (value, after) = if after.starts_with('"') { quoted(after)? } else { bare(after)? };
        fields.insert(key.to_owned(), value);
        rest = after;
    }
    (fields.len() > 1).then_some(fields)
}

fn bare(text: &str) -> Option<(Value, &str)> {
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    let (value, after) = text.split_at(end);
    (!value.contains('"')).then(|| (Value::from(value), after.trim_start()))
}

fn quoted(text: &str) -> Option<(Value, &str)> {
    let mut is_escaped = false;
    let end = text[1..].find(|c: char| {
        let ends = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    })?;
    let (value, after) = text.split_at(end + 2);
    if !(after.is_empty() || after.starts_with(char::is_whitespace)) {
        return None;
    }
    // The escapes are those of JSON; others stay as they are written.
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(&value[1..value.len() - 1]));
    Some((value, after.trim_start()))
}

/// A condition that a structured line meets or not: `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    key: String,
    value: String,
}

/// A text that is no condition.
#[derive(Debug, thiserror::Error)]
#[error("a condition is KEY=VALUE, for example level=error or http.status=500")]
pub struct NoCondition;

impl FromStr for Condition {
    type Err = NoCondition;

    fn from_str(text: &str) -> Result<Self, NoCondition> {
        let (key, value) = text.split_once('=').ok_or(NoCondition)?;
        if key.is_empty() {
            return Err(NoCondition);
        }
        Ok(Condition { key: key.to_owned(), value: value.to_owned() })
    }
}

impl Condition {
    /// Reports whether a line's fields meet the condition. A level is known by its usual names and numbers, in any case.
    pub fn is_met(&self, fields: &Map<String, Value>) -> bool {
        if self.key == "level" {
            let wanted = level(&self.value);
            return LEVELS
                .iter()
                .filter_map(|key| at(fields, key))
                .any(|found| level(&text(found)) == wanted);
        }
        at(fields, &self.key).is_some_and(|found| text(found) == self.value)
    }
}

/// Returns the field of this name; dots lead into objects.
fn at<'a>(fields: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    if let Some(found) = fields.get(key) {
        return Some(found);
    }
    let (outer, inner) = key.split_once('.')?;
    at(fields.get(outer)?.as_object()?, inner)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn level(word: &str) -> String {
    let word = word.to_lowercase();
    let known = NUMBERED.iter().chain(&ALIKE).find(|(other, _)| *other == word);
    known.map_or(word, |(_, level)| (*level).to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_and_logfmt_have_fields_and_plain_text_has_none() {
        for (line, wanted) in [
            (r#"{"level":"error","n":1}"#, json!({"level": "error", "n": 1})),
            (
                r#" at=info method=GET path="/a b" empty= "#,
                json!({"at": "info", "method": "GET", "path": "/a b", "empty": ""}),
            ),
            (r#"msg="she said \"no\"" n=2"#, json!({"msg": "she said \"no\"", "n": "2"})),
            (r#"msg="C:\dir" n=2"#, json!({"msg": "C:\\dir", "n": "2"})),
        ] {
            assert_eq!(fields(line).map(Value::Object), Some(wanted), "{line}");
        }
        for line in [
            "",
            "started",
            "a=1",
            "GET /?a=1 b=2",
            "x=1 and y=2",
            "{not json}",
            "[1]",
            r#"a="1 b=2"#,
            r#"a="1"x b=2"#,
            "1=2 3=4",
        ] {
            assert_eq!(fields(line), None, "{line}");
        }
    }

    #[test]
    fn a_condition_is_met_by_the_field_of_its_name() {
        let is_met = |condition: &str, line: &str| {
            let condition: Condition = condition.parse().expect("valid");
            fields(line).is_some_and(|fields| condition.is_met(&fields))
        };
        for (condition, line, wanted) in [
            ("level=error", r#"{"level":"error"}"#, true),
            ("level=error", r#"{"severity":"ERROR"}"#, true),
            ("level=error", r#"{"level":50}"#, true),
            ("level=error", r#"{"log":{"level":"err"}}"#, true),
            ("level=error", r#"{"level":"info"}"#, false),
            ("level=warn", "level=warning msg=x", true),
            ("level=error", "an error", false),
            ("http.status=500", r#"{"http":{"status":500}}"#, true),
            ("http.status=500", r#"{"http.status":"500"}"#, true),
            ("ok=true", r#"{"ok":true}"#, true),
            ("msg=a=b", r#"{"msg":"a=b"}"#, true),
            ("msg=A", r#"{"msg":"a"}"#, false),
            ("missing=", r#"{"msg":"a"}"#, false),
        ] {
            assert_eq!(is_met(condition, line), wanted, "{condition} of {line}");
        }
        assert!("level".parse::<Condition>().is_err() && "=x".parse::<Condition>().is_err());
    }
}
