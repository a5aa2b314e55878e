//! Texts for people: times, sizes, tables, and output of builds that is safe to show on a terminal.

use chrono::{DateTime, TimeDelta, Utc};
use console::{Alignment, Term, measure_text_width, pad_str, truncate_str};

/// A span of time in at most two units: `0.4 s`, `12 s`, `3 m 20 s`, `2 h 5 m`, `4 d`.
pub(super) fn span(delta: TimeDelta) -> String {
    let millis = delta.num_milliseconds().max(0);
    let seconds = millis / 1000;
    let two = |high: i64, unit: &str, low: i64, small: &str| match low {
        0 => format!("{high} {unit}"),
        low => format!("{high} {unit} {low} {small}"),
    };
    match seconds {
        ..10 => format!("{}.{} s", seconds, millis % 1000 / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => two(seconds / 60, "m", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// How long ago, in one unit: `12s`, `3m`, `2h`, `4d`.
pub(super) fn age(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let seconds = (now - time).num_seconds().max(0);
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A number of bytes: `512 B`, `1.5 KiB`, `20 MiB`.
pub(super) fn size(bytes: u64) -> String {
    let mut unit = "B";
    let mut shown = bytes;
    let mut tenth = 0;
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if shown < 1024 {
            break;
        }
        tenth = shown % 1024 * 10 / 1024;
        shown /= 1024;
        unit = next;
    }
    if tenth > 0 && shown < 100 {
        format!("{shown}.{tenth} {unit}")
    } else {
        format!("{shown} {unit}")
    }
}

/// Columns of the terminal that standard output is, if it is one.
pub(super) fn width() -> Option<usize> {
    let terminal = Term::stdout();
    terminal.size_checked().map(|(_, columns)| columns.into())
}

/// Fewest columns that a column of a table is cut to.
const NARROWEST: usize = 8;
/// Between two columns of a table.
const GAP: usize = 2;

/// Rows under their headings, in columns as wide as they need to be. Cells may be coloured. Where there are fewer columns
/// than that, the widest are cut, but never the first, which tells the rows apart.
pub(super) fn table(headings: &[&str], rows: Vec<Vec<String>>, room: Option<usize>) -> String {
    let mut all = vec![headings.iter().map(|heading| (*heading).to_owned()).collect()];
    all.extend(rows);
    let width = |column: usize| {
        let cells = all.iter().filter_map(|row: &Vec<String>| row.get(column));
        cells.map(|cell| measure_text_width(cell)).max().unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let room = room.unwrap_or(usize::MAX);
    while widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1) > room {
        match widths.iter_mut().skip(1).max() {
            Some(widest) if *widest > NARROWEST => *widest -= 1,
            _ => break,
        }
    }
    let mut text = String::new();
    for row in &all {
        let cells = row.iter().zip(&widths);
        let line: Vec<_> = cells
            .map(|(cell, width)| pad_str(cell, *width, Alignment::Left, Some("…")))
            .collect();
        let line = line.join(&" ".repeat(GAP));
        text.push_str(&truncate_str(line.trim_end(), room, "…"));
        text.push('\n');
    }
    text
}

/// One line of a build's output as a terminal may show it: a build isn't trusted to move the cursor, rename the window
/// or repaint what stands above. Of a line that was overwritten (`\r`) the last state is left.
pub(super) fn harmless(line: &str) -> String {
    let line = line.trim_end_matches(['\n', '\r']);
    let last = line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or("");
    let plain = anstream::adapter::strip_str(last).to_string();
    plain.chars().filter(|c| *c == '\t' || !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_ages_and_sizes() {
        let of = |millis| span(TimeDelta::milliseconds(millis));
        let shown = [-5, 0, 430, 12_000, 200_000, 3_600_000, 7_500_000, 360_000_000].map(of);
        assert_eq!(
            shown,
            [
                "0.0 s", "0.0 s", "0.4 s", "12 s", "3 m 20 s", "1 h", "2 h 5 m", "4 d 4 h"
            ]
        );
        let start = DateTime::UNIX_EPOCH;
        let ages = [-1, 59, 61, 7200, 200_000].map(|seconds| age(start, start + TimeDelta::seconds(seconds)));
        assert_eq!(ages, ["0s", "59s", "1m", "2h", "2d"]);
        let sizes = [0, 1023, 1024, 1536, 20 << 20, (3 << 30) + (200 << 20)].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "20 MiB", "3.1 GiB"]);
    }

    #[test]
    fn tables_have_no_trailing_blanks() {
        let rows = vec![
            vec!["1".to_owned(), "über".to_owned()],
            vec!["222".to_owned(), String::new()],
        ];
        assert_eq!(table(&["ID", "NAME"], rows, None), "ID   NAME\n1    über\n222\n");
    }

    #[test]
    fn tables_fit_into_the_terminal() {
        let rows = || {
            vec![vec![
                "0123456789".to_owned(),
                "\u{1b}[1ma long state\u{1b}[0m".to_owned(),
                "x".repeat(30),
            ]]
        };
        let shown = |room| {
            let text = table(&["ID", "STATE", "SOURCE"], rows(), Some(room));
            anstream::adapter::strip_str(&text).to_string()
        };
        assert_eq!(
            shown(40),
            format!(
                "ID          STATE         SOURCE\n0123456789  a long state  {}…\n",
                "x".repeat(13)
            )
        );
        assert_eq!(
            shown(30),
            "ID          STATE     SOURCE\n0123456789  a long …  xxxxxxx…\n"
        );
        assert_eq!(shown(15), "ID          ST…\n0123456789  a …\n");
    }

    #[test]
    fn a_build_does_not_play_with_the_terminal() {
        assert_eq!(
            harmless("\u{1b}[31mred\u{1b}[0m\u{1b}]0;title\u{7}\u{8}\u{9b}2J\n"),
            "red2J"
        );
        assert_eq!(harmless("10%\r50%\r100%\r\n"), "100%");
        assert_eq!(harmless("a\tb\u{202e}é"), "a\tb\u{202e}é");
    }
}
