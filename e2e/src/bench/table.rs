//! The table of results.
#![expect(clippy::print_stdout, reason = "prints the results of the benchmarks")]

/// What was measured and whether it is good enough.
#[derive(Debug)]
struct Row {
    what: String,
    ours: String,
    beside: String,
    ratio: String,
    goal: String,
    met: Option<bool>,
}

/// Results so far.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds a comparison; `goal` is the text of the goal and whether it was met.
    pub fn compare(&mut self, what: &str, ours: String, beside: String, ratio: f64, goal: Option<(&str, bool)>) {
        self.add(what, ours, beside, format!("{ratio:.2}"), goal);
    }

    /// Adds a number that stands by itself.
    pub fn number(&mut self, what: &str, ours: String, goal: &str, met: bool) {
        self.add(what, ours, String::new(), String::new(), Some((goal, met)));
    }

    /// Adds what is only worth knowing.
    pub fn note(&mut self, what: &str, ours: String) {
        self.add(what, ours, String::new(), String::new(), None);
    }

    fn add(&mut self, what: &str, ours: String, beside: String, ratio: String, goal: Option<(&str, bool)>) {
        let row = Row {
            what: what.to_owned(),
            ours,
            beside,
            ratio,
            goal: goal.map_or_else(String::new, |(text, _)| text.to_owned()),
            met: goal.map(|(_, met)| met),
        };
        println!("{}", row.markdown());
        self.rows.push(row);
    }

    /// Prints all of it as Markdown.
    pub fn print(&self) {
        println!("\n| what | ours | beside | ratio | goal | met |\n|---|---|---|---|---|---|");
        for row in &self.rows {
            println!("{}", row.markdown());
        }
    }

    /// Whether no goal was missed.
    pub fn every_goal_met(&self) -> bool {
        self.rows.iter().all(|row| row.met != Some(false))
    }
}

impl Row {
    fn markdown(&self) -> String {
        let met = match self.met {
            None => "",
            Some(true) => "yes",
            Some(false) => "**NO**",
        };
        let Self { what, ours, beside, ratio, goal, .. } = self;
        format!("| {what} | {ours} | {beside} | {ratio} | {goal} | {met} |")
    }
}
