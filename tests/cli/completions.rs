//! Scripts for shells, and help.

use super::support::{Shell, finish};

#[tokio::test]
async fn shells_can_read_their_scripts() {
    let shell = Shell::bare();
    for name in ["bash", "zsh", "fish"] {
        let ran = shell.run(&["completions", name]).await.expect(0);
        assert!(ran.error.is_empty(), "{ran:?}");
        for word in ["build", "cancel", "--build-arg", "--no-push"] {
            assert!(ran.out.contains(word.trim_start_matches("--")), "{name}: {word}");
        }
        shell.write(name, &ran.out);
    }
    let mut bash = tokio::process::Command::new("bash");
    let asked = "source ./bash; COMP_WORDS=(kiln bui); COMP_CWORD=1; _kiln kiln bui kiln; echo \"${COMPREPLY[@]}\"";
    bash.args(["-euc", asked]).current_dir(shell.folder());
    assert_eq!(finish(&mut bash).await.expect(0).out, "build\n");
}

#[tokio::test]
async fn shells_offer_what_a_command_takes() {
    let shell = Shell::bare();
    shell.write("bash", &shell.run(&["completions", "bash"]).await.expect(0).out);
    for (words, offered, others) in [
        ("kiln secret set --", "--registry", "--listen"),
        ("kiln build --", "--no-push", "--database-url"),
        ("kiln token list --", "--json", "--database-url"),
        ("kiln token create --", "--database-url", "--no-push"),
        ("kiln serve --", "--listen", "--no-push"),
    ] {
        let last = words.split(' ').count() - 1;
        let asked = format!(
            "source ./bash; COMP_WORDS=({words}); COMP_CWORD={last}; _kiln kiln -- kiln; echo \"${{COMPREPLY[@]}}\""
        );
        let mut bash = tokio::process::Command::new("bash");
        bash.args(["-euc", &asked]).current_dir(shell.folder());
        let offers = finish(&mut bash).await.expect(0).out;
        let offers: Vec<_> = offers.split_whitespace().collect();
        assert!(
            offers.contains(&offered) && !offers.contains(&others),
            "{words}: {offers:?}"
        );
    }
}

#[tokio::test]
async fn what_variables_set_is_not_asked_for() {
    let mut shell = Shell::bare();
    (shell.url, shell.token) = (Some("http://kiln.invalid".to_owned()), Some("kiln_x".to_owned()));
    let ran = shell.run(&["get"]).await.expect(2);
    ran.says(&["Usage: kiln get [OPTIONS] <BUILD>"]);
    let ran = shell.run(&["secret", "set"]).await.expect(2);
    ran.says(&["Usage: kiln secret set [OPTIONS] <NAME>"]);
}

#[tokio::test]
async fn help_of_the_client_keeps_to_the_client() {
    let shell = Shell::bare();
    for command in ["build", "get", "list", "logs", "cancel", "retry", "completions"] {
        let help = shell.run(&[command, "--help"]).await.expect(0).out;
        for foreign in ["--database-url", "--listen", "--namespace"] {
            assert!(!help.contains(foreign), "{command}: {foreign}");
        }
        assert_eq!(help.contains("KILN_TOKEN"), command != "completions", "{command}");
    }
    let serve = shell.run(&["serve", "--help"]).await.expect(0).out;
    assert!(serve.contains("--database-url"), "{serve}");
}
