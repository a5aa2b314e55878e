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
