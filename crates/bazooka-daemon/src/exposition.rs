//! A process's metrics as text, in the format that the caller asks for.
//!
//! Owns the two formats: OpenMetrics, as `prometheus-client` writes it, and the older text format that every tool
//! reads: curl in a terminal, `promtool`, other vendors' agents.

use prometheus_client::registry::Registry;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// Returns the format for a request's `Accept` header: OpenMetrics only if the header names it.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Format::OpenMetrics,
            _ => Format::Text,
        }
    }

    /// Returns the `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Formats the metrics of a registry.
///
/// # Errors
/// Those of the metrics themselves.
pub fn expose(registry: &Registry, format: Format) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(match format {
        Format::OpenMetrics => text,
        Format::Text => plain(&text),
    })
}

/// Converts OpenMetrics to the older format. Samples are the same in both. In the older format a counter's family has
/// its samples' full name, and there are no units and no end mark.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    // The help line, which comes before its family's type.
    let mut help = None;
    for line in text.lines() {
        if line.starts_with("# HELP ") {
            help = Some(line);
            continue;
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            let said = help.take().and_then(|line| line["# HELP ".len()..].split_once(' '));
            if let Some((_, said)) = said {
                plain.push_str(&format!("# HELP {name}{suffix} {said}\n"));
            }
            plain.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with("# ") {
            plain.push_str(line);
            plain.push('\n');
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram};

    use super::*;

    #[test]
    fn who_names_openmetrics_gets_it_and_all_others_what_everything_reads() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("*/*")), Format::Text);
        assert_eq!(Format::accepted(None), Format::Text);
    }

    #[test]
    fn a_counter_bears_its_whole_name_in_the_older_format() {
        let mut registry = Registry::default();
        let starts = Family::<[(&'static str, &'static str); 1], Counter>::default();
        starts.get_or_create(&[("how", "a \"b\"\n# c")]).inc();
        registry.register("starts", "Processes started", starts);
        registry.register("hosts", "Hosts", Gauge::<i64>::default());
        let took = Histogram::new([0.5]);
        took.observe(0.1);
        registry.register("took_seconds", "Time", took);
        let text = expose(&registry, Format::Text).expect("text");
        let wanted = "# HELP starts_total Processes started.\n# TYPE starts_total counter\n\
                      starts_total{how=\"a \\\"b\\\"\\n# c\"} 1\n\
                      # HELP hosts Hosts.\n# TYPE hosts gauge\nhosts 0\n\
                      # HELP took_seconds Time.\n# TYPE took_seconds histogram\ntook_seconds_sum 0.1\ntook_seconds_count 1\n\
                      took_seconds_bucket{le=\"0.5\"} 1\ntook_seconds_bucket{le=\"+Inf\"} 1\n";
        assert_eq!(text, wanted);
        let openmetrics = expose(&registry, Format::OpenMetrics).expect("text");
        assert!(openmetrics.contains("# TYPE starts counter\n") && openmetrics.ends_with("# EOF\n"));
    }
}
