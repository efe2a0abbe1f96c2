//! Rules on paper: a shell script of restore commands, each with its text as a here-document.
//!
//! Without `--noflush` a restore program throws away every rule of a table that is not in its text, so the flag must not
//! get lost on the way from the screen. It stands in the script: `plan | sh` does what was printed, and `plan |
//! iptables-restore` ends at the first line, before any table.

use std::io;

use sallyport_engine::iptables::Variant;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::iptables::op::Op;
use sallyport_ruleset::iptables::restore::restore;

/// What a script begins with: it ends at the first command that fails. No restore program takes it for a line of its own.
pub const HEAD: &str = "set -e\n";

/// Writes the command that adds the restore text `rules` to what a host holds.
pub fn write_restore(
    out: &mut impl io::Write,
    variant: Option<Variant>,
    family: Family,
    rules: &str,
) -> io::Result<()> {
    let program = restore_program(variant, family);
    write!(out, "{program} --noflush <<'EOF'\n{rules}EOF\n")
}

/// Writes a script that does `ops`; nothing if there is nothing to load. Without a variant, the host's default is used.
pub fn write_change(out: &mut impl io::Write, variant: Option<Variant>, ops: &[Op]) -> io::Result<()> {
    let texts: Vec<(Family, String)> =
        Family::BOTH.into_iter().filter_map(|family| Some((family, restore(ops, family)?))).collect();
    if !texts.is_empty() {
        out.write_all(HEAD.as_bytes())?;
    }
    for (family, text) in texts {
        write_restore(out, variant, family, &text)?;
    }
    Ok(())
}

/// Writes `text` as comments, whatever is in it.
pub fn write_comment(out: &mut impl io::Write, text: &str) -> io::Result<()> {
    for line in text.lines() {
        let mark = if line.starts_with('#') { "" } else { "# " };
        writeln!(out, "{mark}{line}")?;
    }
    Ok(())
}

fn restore_program(variant: Option<Variant>, family: Family) -> String {
    let program = variant.map_or("iptables", Variant::name);
    let program = if family == Family::V6 { program.replacen("ip", "ip6", 1) } else { program.to_owned() };
    format!("{program}-restore")
}

#[cfg(test)]
mod tests {
    use sallyport_ruleset::iptables::op::Step;
    use sallyport_ruleset::iptables::rule::Table;

    use super::*;

    /// Flushes a chain of this family's table.
    fn flush(family: Family, table: Table) -> Op {
        Op { family, table, step: Step::Flush { chain: "SALLY-X".to_owned() } }
    }

    fn written(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_family_is_a_command_of_its_variant_that_flushes_nothing() {
        let ops = [flush(Family::V4, Table::Nat), flush(Family::V6, Table::Filter)];
        for (variant, v4, v6) in [
            (Some(Variant::Nft), "iptables-nft-restore", "ip6tables-nft-restore"),
            (Some(Variant::Legacy), "iptables-legacy-restore", "ip6tables-legacy-restore"),
            (None, "iptables-restore", "ip6tables-restore"),
        ] {
            let body = |table| format!("*{table}\n:SALLY-X - [0:0]\nCOMMIT");
            assert_eq!(
                written(|out| write_change(out, variant, &ops)),
                format!(
                    "set -e\n{v4} --noflush <<'EOF'\n{}\nEOF\n{v6} --noflush <<'EOF'\n{}\nEOF\n",
                    body("nat"),
                    body("filter")
                )
            );
        }
    }

    #[test]
    fn where_nothing_is_to_be_loaded_there_is_no_command() {
        assert_eq!(written(|out| write_change(out, None, &[])), "");
        let v6 = written(|out| write_change(out, None, &[flush(Family::V6, Table::Nat)]));
        assert_eq!(v6, "set -e\nip6tables-restore --noflush <<'EOF'\n*nat\n:SALLY-X - [0:0]\nCOMMIT\nEOF\n");
    }

    #[test]
    fn no_line_of_a_comment_is_a_command() {
        let text = "# IPv4 nat\n- -A SALLY-MT\n+ -A SALLY-MT\nreboot\r\n\n*filter";
        let comment = written(|out| write_comment(out, text));
        assert_eq!(comment, "# IPv4 nat\n# - -A SALLY-MT\n# + -A SALLY-MT\n# reboot\n# \n# *filter\n");
    }
}
