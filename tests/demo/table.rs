//! The table of pins that `--explain` prints, and its text made short enough for a terminal.

use std::fmt;

/// The columns of a terminal that are used.
pub const WIDTH: usize = 100;

/// Rows of cells; the first row names the columns.
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// Finds the table among the lines of the log.
    pub fn read(stderr: &str) -> Self {
        let from = stderr.lines().skip_while(|line| !line.starts_with("IMAGE "));
        let lines: Vec<&str> = from.take_while(|line| !line.contains(" INFO ") && !line.contains(" WARN ")).collect();
        let header = lines.first().expect("a table");
        let starts: Vec<usize> = (0..header.len())
            .filter(|at| header[*at..].starts_with(char::is_alphabetic) && (*at == 0 || &header[at - 1..*at] == " "))
            .collect();
        let cell = |line: &str, column: usize| {
            let end = starts.get(column + 1).copied().unwrap_or(line.len());
            short(line.get(starts[column]..end).unwrap_or_default().trim())
        };
        Self(lines.iter().map(|line| (0..starts.len()).map(|column| cell(line, column)).collect()).collect())
    }

    /// The rows without the names of the columns.
    pub fn rows(&self) -> impl Iterator<Item = &Vec<String>> {
        self.0.iter().skip(1)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.0.first().map_or(0, Vec::len);
        let widths: Vec<usize> =
            (0..columns).map(|column| self.0.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
        for row in &self.0 {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(out, "    {}", cells.join(" ").trim_end())?;
        }
        Ok(())
    }
}

/// Shortens digests.
pub fn short(text: &str) -> String {
    const DIGITS: usize = 64;
    const SHOWN: usize = 8;
    let mut parts = text.split("sha256:");
    let mut shortened = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shortened += "sha256:";
        match part.get(..DIGITS) {
            Some(digest) => shortened += &format!("{}…{}", &digest[..SHOWN], &part[DIGITS..]),
            None => shortened += part,
        }
    }
    shortened
}

/// Breaks a line between words. Later lines are indented like the first.
pub fn wrap(line: &str, width: usize) -> Vec<String> {
    let indent = " ".repeat(line.len() - line.trim_start().len());
    let mut lines = Vec::new();
    let mut current = indent.clone();
    for word in line.split_whitespace() {
        if current.chars().count() + 1 + word.chars().count() > width && current.trim() != "" {
            lines.push(std::mem::replace(&mut current, format!("{indent}{word}")));
        } else if current.trim().is_empty() {
            current += word;
        } else {
            current += &format!(" {word}");
        }
    }
    lines.push(current);
    lines
}
