//! The binary as a user meets it first: help, completions, mistakes on the command line.

use std::process::{Command, Output, Stdio};

fn sae(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sae"))
        .args(args)
        .output()
        .expect("the binary starts")
}

#[test]
fn help_lists_every_subcommand_and_exits_zero() {
    let out = sae(&["--help"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success());
    assert!(text.contains("completions"), "{text}");
}

#[test]
fn no_arguments_print_the_help_and_fail() {
    let out = sae(&[]);
    assert!(!out.status.success());
    assert!(String::from_utf8(out.stderr).unwrap().contains("Usage: sae"));
}

#[test]
fn an_unknown_subcommand_fails_and_names_it() {
    let out = sae(&["harvst"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8(out.stderr).unwrap().contains("harvst"));
}

#[test]
fn completions_name_the_subcommands_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let out = sae(&["completions", shell]);
        assert!(out.status.success(), "{shell}");
        assert!(
            String::from_utf8(out.stdout).unwrap().contains("completions"),
            "{shell}"
        );
    }
}

#[test]
fn a_reader_that_leaves_is_not_a_mistake() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sae"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
}
