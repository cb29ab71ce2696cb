//! The page about settings, and the words that help and errors share with it.

use super::{ALL, Default, Setting, Takes};

/// The number of columns of the page's text.
const COLUMNS: usize = 120;

/// Returns docs/settings.md, made from the table.
pub fn docs() -> String {
    let mut page = "# Settings of a proc\n\n".to_owned();
    paragraph(
        &mut page,
        "`bazooka procs set PROC --SETTING VALUE ...` sets one or more; `--SETTING default` takes one back. `bazooka procs -l` \
         lists what holds, `bazooka procs --json` what is set (`null` where nothing is). This page is made from the table that \
         all of them are made from, `crates/visor/src/settings.rs`.",
    );
    page.push_str("\n| option | values | default | holds | JSON |\n|---|---|---|---|---|\n");
    for setting in ALL {
        let Setting { name, json, .. } = setting;
        let values = values(setting);
        let default = default_in_words(&setting.default);
        let holds = if setting.holds_at_once() { "at once" } else { "from the next instance on" };
        page.push_str(&format!("| `--{name}` | {values} | {default} | {holds} | `{json}` |\n"));
    }
    for Setting { name, placeholder, example, help, more, .. } in ALL {
        page.push_str(&format!("\n## `--{name} {placeholder}`\n\n"));
        let more = if more.is_empty() { String::new() } else { format!(" {more}") };
        paragraph(&mut page, &format!("{help}.{more} For example `--{name} {example}`."));
    }
    page
}

/// Adds a paragraph, wrapped into lines.
fn paragraph(page: &mut String, text: &str) {
    let mut column = 0;
    for word in text.split(' ') {
        let width = word.chars().count();
        if column > 0 {
            let fits = column + 1 + width <= COLUMNS;
            page.push(if fits { ' ' } else { '\n' });
            column = if fits { column + 1 } else { 0 };
        }
        page.push_str(word);
        column += width;
    }
    page.push('\n');
}

impl Setting {
    /// Returns the help text of its option.
    pub fn help_in_words(&self) -> String {
        let bounds = match self.takes {
            Takes::Time { .. } | Takes::Count { none: false, .. } => self.takes.bounds(),
            _ => None,
        };
        let bounds = bounds.map(|bounds| format!(", {bounds}")).unwrap_or_default();
        let back = if self.takes.has_none() { "`none` or `default`" } else { "`default`" };
        format!("{}{bounds}; {back} for {}", self.help, default_in_words(&self.default))
    }
}

/// Returns a default in words.
pub(super) fn default_in_words(default: &Default) -> String {
    match default {
        Default::Is(value) => value.to_string(),
        Default::ByName { web, other } => format!("{web} for web, else {other}"),
    }
}

fn values(setting: &Setting) -> String {
    let values = match &setting.takes {
        Takes::Size { least } => format!("{} or more", super::size(*least)),
        Takes::Protocol => "`http`, `tcp`".to_owned(),
        Takes::Check => "`started`, `listening`, `http:/PATH`".to_owned(),
        Takes::OnPartition => "`keep`, `stop`".to_owned(),
        takes => takes.bounds().unwrap_or_default(),
    };
    if setting.takes.has_none() { format!("{values}; `none`") } else { values }
}
