//! A browser to look at pages with: Debian's chromium, told what to do line by line.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{SOON, until};

const SCRIPT: &str = include_str!("browser.py");

/// A browser with one page. It ends with its owner.
pub struct Browser {
    process: Child,
    asks: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Browser {
    /// Starts one.
    pub fn start() -> Browser {
        Browser::with(&[])
    }

    /// Starts one with these options of chromium.
    pub fn with(options: &[&str]) -> Browser {
        let mut process = Command::new("python3")
            .args(["-c", SCRIPT])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let asks = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().expect("it is a pipe"));
        Browser { process, asks, answers }
    }

    fn ask(&mut self, what: &Value) -> Value {
        let asks = self.asks.as_mut().expect("it runs");
        writeln!(asks, "{what}").expect("the browser goes on; it takes the package chromium");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it is text");
        assert!(!line.is_empty(), "the browser has ended; it takes the package chromium");
        serde_json::from_str(&line).expect("it is JSON")
    }

    /// Goes to a page, in a window of this size.
    pub fn open(&mut self, url: &str, width: u32, height: u32) {
        let failed = self.ask(&json!({"open": url, "width": width, "height": height}));
        assert_eq!(failed, Value::Null, "{url}");
    }

    /// What an expression of JavaScript comes to on the page.
    pub fn eval(&mut self, expression: &str) -> Value {
        self.ask(&json!({ "eval": expression }))
    }

    /// Waits until the page's text has all of these words.
    pub fn sees(&mut self, words: &[&str]) {
        until(&format!("the page shows {words:?}"), SOON, || {
            let text = self.eval("document.body.innerText");
            let text = text.as_str().unwrap_or_default();
            if words.iter().all(|word| text.contains(word)) { Ok(()) } else { Err(text.to_owned()) }
        });
    }

    /// Takes a picture of the whole page.
    pub fn shoot(&mut self, file: &Path) {
        self.ask(&json!({ "shot": file }));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its input's end is its own.
        drop(self.asks.take());
        let _ = self.process.wait();
    }
}
