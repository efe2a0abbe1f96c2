//! Rules on paper: a shell script of restore commands, each with its text as a here-document.
//!
//! Without `--noflush` a restore program throws away every rule of a table that is not in its text, so the flag must not
//! get lost on the way from the screen. It stands in the script: `plan | sh` does what was printed, and `plan |
//! iptables-restore` ends at the first line, before any table.

use std::io;

use sallyport_engine::iptables::Variant;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::plan::Batch;

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

/// Writes a script that loads `batch`; nothing if there is nothing to load. Without a variant, the host's default is used.
pub fn write_batch(out: &mut impl io::Write, variant: Option<Variant>, batch: &Batch) -> io::Result<()> {
    if !batch.is_empty() {
        out.write_all(HEAD.as_bytes())?;
    }
    for family in Family::BOTH {
        if let Some(rules) = batch.family(family) {
            write_restore(out, variant, family, rules)?;
        }
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
    use super::*;

    fn batch(v4: Option<&str>, v6: Option<&str>) -> Batch {
        Batch { v4: v4.map(str::to_owned), v6: v6.map(str::to_owned) }
    }

    fn written(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_family_is_a_command_of_its_variant_that_flushes_nothing() {
        let batch = batch(Some("*nat\nCOMMIT\n"), Some("*filter\nCOMMIT\n"));
        for (variant, v4, v6) in [
            (Some(Variant::Nft), "iptables-nft-restore", "ip6tables-nft-restore"),
            (Some(Variant::Legacy), "iptables-legacy-restore", "ip6tables-legacy-restore"),
            (None, "iptables-restore", "ip6tables-restore"),
        ] {
            assert_eq!(
                written(|out| write_batch(out, variant, &batch)),
                format!(
                    "set -e\n{v4} --noflush <<'EOF'\n*nat\nCOMMIT\nEOF\n{v6} --noflush <<'EOF'\n*filter\nCOMMIT\nEOF\n"
                )
            );
        }
    }

    #[test]
    fn where_nothing_is_to_be_loaded_there_is_no_command() {
        assert_eq!(written(|out| write_batch(out, None, &batch(None, None))), "");
        let v6 = written(|out| write_batch(out, None, &batch(None, Some("*nat\nCOMMIT\n"))));
        assert_eq!(v6, "set -e\nip6tables-restore --noflush <<'EOF'\n*nat\nCOMMIT\nEOF\n");
    }

    #[test]
    fn no_line_of_a_comment_is_a_command() {
        let text = "# IPv4 nat\n- -A SALLY-MT\n+ -A SALLY-MT\nreboot\r\n\n*filter";
        let comment = written(|out| write_comment(out, text));
        assert_eq!(comment, "# IPv4 nat\n# - -A SALLY-MT\n# + -A SALLY-MT\n# reboot\n# \n# *filter\n");
    }
}
