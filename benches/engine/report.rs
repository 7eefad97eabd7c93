//! Tables and percentiles.

use std::time::Duration;

/// A Markdown table under a heading.
pub struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With its columns' names.
    pub fn new(title: &str, columns: &[&str]) -> Table {
        let rule = columns.iter().map(|_| "---".to_owned()).collect();
        let columns = columns.iter().map(|&name| name.to_owned()).collect();
        Table { title: title.to_owned(), rows: vec![columns, rule] }
    }

    /// Appends a row.
    pub fn row(&mut self, cells: &[String]) {
        eprintln!("  {}: {}", self.title, cells.join(" | "));
        self.rows.push(cells.to_vec());
    }

    /// Prints it.
    pub fn print(&self) {
        println!("\n### {}\n", self.title);
        for row in &self.rows {
            println!("| {} |", row.join(" | "));
        }
    }
}

/// Milliseconds with a digit.
pub fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

/// Microseconds.
pub fn us(time: Duration) -> String {
    format!("{:.0}", time.as_secs_f64() * 1e6)
}

/// How many times one time is in another.
pub fn ratio(time: Duration, of: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() / of.as_secs_f64())
}

/// The value below which so many hundredths of the times lie.
pub fn percentile(times: &mut [Duration], hundredths: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * hundredths / 100).min(times.len() - 1)]
}
