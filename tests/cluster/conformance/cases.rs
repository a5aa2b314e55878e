//! The table of cases.

use serde_json::json;

use super::{
    Builder,
    case::{CASE, Case, Source, Support},
    expect, expect_absent, expect_config, expect_entry, expect_file, expect_link, url_of_a_file,
};

pub(super) const CASES: &[Case] = &[
    // The longest first: the others fit beside it.
    Case {
        name: "a layer of 2 GB",
        source: Source::Files(&[(
            "Dockerfile",
            "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=2048 2>/dev/null && echo end >> /big\n",
        )]),
        adjust: |request| request["resources"] = json!({"cpu": "1", "memory": "1Gi", "disk": "12Gi"}),
        check: |image, _| {
            expect(
                "/big",
                image.tree().get("big").map(|entry| entry.size),
                Some((2 << 30) + 4),
            )
        },
        ..CASE
    },
    Case {
        name: "100 layers",
        source: Source::Files(&[("file", "content\n")]),
        adjust: |request| {
            let copies = (1..=100).map(|n| format!("COPY file /copies/{n}\n"));
            let dockerfile = "FROM busybox\n".to_owned() + &copies.collect::<String>();
            request["source"]["files"]["Dockerfile"] = json!(dockerfile);
        },
        check: |image, builder| {
            let tree = image.tree();
            let copies = (1..=100).filter(|n| tree.contains_key(&format!("copies/{n}"))).count();
            expect("the number of copies", copies, 100)?;
            let wanted = if builder == Builder::Buildkit { 101 } else { 2 };
            expect("the number of layers", image.layers(), wanted)
        },
        buildah: Support::Note("one layer on top of the base's, unless `cache` is used"),
        ..CASE
    },
    Case {
        name: "multi-stage: `COPY --from` by name and number, unused stages skipped",
        source: Source::Files(&[(
            "Dockerfile",
            "FROM busybox AS first\nRUN echo one > /one && mkdir /d && echo two > /d/two\n\
             FROM busybox AS unused\nRUN exit 7\n\
             FROM first AS second\nRUN echo more >> /one\n\
             FROM scratch\nCOPY --from=first /one /by-name\nCOPY --from=2 /one /by-number\nCOPY --from=second /d /d\n",
        )]),
        check: |image, _| {
            expect_file(image, "by-name", "one\n")?;
            expect_file(image, "by-number", "one\nmore\n")?;
            expect_file(image, "d/two", "two\n")?;
            expect_absent(image, &["one", "bin"])
        },
        ..CASE
    },
    Case {
        name: "`target`",
        source: Source::Files(&[(
            "Dockerfile",
            "FROM busybox AS base\nRUN echo base > /is\nFROM base AS wanted\nRUN echo wanted > /is\nFROM base\nRUN exit 7\n",
        )]),
        adjust: |request| request["target"] = json!("wanted"),
        check: |image, _| expect_file(image, "is", "wanted\n"),
        ..CASE
    },
    Case {
        name: "`ARG` before `FROM`, defaults, build arguments",
        source: Source::Files(&[(
            "Dockerfile",
            "ARG BASE=nothere\nARG WHO=global\nFROM ${BASE} AS x\nARG WHO\nARG OWN=default\nARG KEPT=kept\n\
             ENV SAW=$WHO-${OWN}\nRUN echo \"$WHO $OWN $KEPT ${UNDECLARED:-undeclared}\" > /args\n",
        )]),
        adjust: |request| {
            request["build_args"] = json!({"BASE": "busybox", "OWN": "given é $(x) 'y'", "UNDECLARED": "hidden"});
        },
        check: |image, _| {
            expect_file(image, "args", "global given é $(x) 'y' kept undeclared\n")?;
            let env = image.config["config"]["Env"].to_string();
            expect("SAW", env.contains("\"SAW=global-given é $(x) 'y'\""), true)
        },
        ..CASE
    },
    Case {
        name: "platform arguments (`TARGETARCH`, `BUILDPLATFORM`, …)",
        source: Source::Files(&[(
            "Dockerfile",
            "FROM --platform=$BUILDPLATFORM busybox\nARG TARGETPLATFORM\nARG TARGETOS\nARG TARGETARCH\n\
             RUN echo \"$TARGETPLATFORM $TARGETOS $TARGETARCH\" > /platform\n",
        )]),
        check: |image, _| {
            expect_file(image, "platform", "linux/amd64 linux amd64\n")?;
            expect("architecture", &image.config["architecture"], &json!("amd64"))
        },
        ..CASE
    },
    Case {
        name: "heredoc in `RUN`",
        source: Source::Files(&[(
            "Dockerfile",
            "FROM busybox\nRUN <<EOF\necho one > /f\necho two >> /f\nEOF\n",
        )]),
        check: |image, _| expect_file(image, "f", "one\ntwo\n"),
        buildah: HEREDOC,
        ..CASE
    },
    Case {
        name: "heredoc in `COPY`",
        source: Source::Files(&[(
            "Dockerfile",
            "FROM busybox\nCOPY <<EOF <<'RAW' /d/\nhome is $HOME\nEOF\nhome is $HOME\nRAW\n",
        )]),
        check: |image, _| {
            expect_file(image, "d/EOF", "home is /root\n").or_else(|_| expect_file(image, "d/EOF", "home is \n"))?;
            expect_file(image, "d/RAW", "home is $HOME\n")
        },
        buildah: HEREDOC,
        ..CASE
    },
    Case {
        name: "`COPY --from` of an image",
        source: Source::Files(&[("Dockerfile", "FROM scratch\nCOPY --from=busybox /bin/busybox /tool\n")]),
        check: |image, _| expect_entry(image, "tool", "-rwxr-xr-x", "0/0"),
        ..CASE
    },
    Case {
        name: "`COPY --chmod`",
        source: Source::Files(&[
            ("Dockerfile", "FROM scratch\nCOPY --chmod=0751 file /file\n"),
            ("file", "x\n"),
        ]),
        check: |image, _| expect_entry(image, "file", "-rwxr-x--x", "0/0"),
        ..CASE
    },
    Case {
        name: "`COPY --chown`",
        source: Source::Files(&[
            ("Dockerfile", "FROM busybox\nCOPY --chown=12:34 d /d\n"),
            ("d/file", "x\n"),
        ]),
        check: |image, _| {
            expect_entry(image, "d/file", "-rw-r--r--", "12/34")?;
            expect_entry(image, "d", "drwxr-xr-x", "12/34")
        },
        ..CASE
    },
    Case {
        name: "`COPY --link`",
        source: Source::Files(&[
            ("Dockerfile", "FROM busybox\nCOPY --link file /d/file\n"),
            ("file", "x\n"),
        ]),
        check: |image, _| expect_file(image, "d/file", "x\n"),
        buildah: Support::Refused {
            code: "dockerfile_invalid",
            words: &["COPY only supports", "buildkit"],
        },
        ..CASE
    },
    Case {
        name: "`ADD` of a URL",
        source: Source::Files(&[("Dockerfile", "FROM scratch\nARG URL\nADD $URL /file\n")]),
        adjust: |request| request["build_args"] = json!({"URL": url_of_a_file()}),
        check: |image, _| expect_file(image, "file", "{}"),
        ..CASE
    },
    Case {
        name: "`RUN --mount` of type cache, bind, tmpfs",
        source: Source::Files(&[
            (
                "Dockerfile",
                "FROM busybox\nRUN --mount=type=cache,target=/cache echo kept > /cache/f && cp /cache/f /from-cache\n\
                 RUN --mount=type=bind,source=data,target=/data cp /data/f /from-bind\n\
                 RUN --mount=type=tmpfs,target=/volatile echo x > /volatile/f\n",
            ),
            ("data/f", "bound\n"),
        ]),
        check: |image, _| {
            expect_file(image, "from-cache", "kept\n")?;
            expect_file(image, "from-bind", "bound\n")?;
            expect_absent(image, &["cache/f", "data/f", "volatile/f"])
        },
        ..CASE
    },
    Case {
        name: "`ONBUILD`",
        base: Some("FROM busybox\nONBUILD COPY file /onbuild/\nONBUILD RUN echo triggered > /triggered\n"),
        source: Source::Files(&[
            ("Dockerfile", "ARG BASE\nFROM $BASE\nRUN cat /triggered > /seen\n"),
            ("file", "x\n"),
        ]),
        check: |image, _| {
            expect_file(image, "onbuild/file", "x\n")?;
            expect_file(image, "seen", "triggered\n")
        },
        ..CASE
    },
    Case {
        name: "`HEALTHCHECK`",
        source: Source::Files(&[(
            "Dockerfile",
            "FROM busybox\nHEALTHCHECK --interval=5s --timeout=3s --start-period=1s --retries=4 CMD [\"true\", \"é\"]\n",
        )]),
        check: |image, _| {
            let check = &image.config["config"]["Healthcheck"];
            expect("the test", &check["Test"], &json!(["CMD", "true", "é"]))?;
            expect("the interval", &check["Interval"], &json!(5_000_000_000_u64))?;
            expect("the retries", &check["Retries"], &json!(4))
        },
        ..CASE
    },
    Case {
        name: "`ENV`, `LABEL`, `WORKDIR`, `EXPOSE`, `VOLUME`, `STOPSIGNAL`, `ENTRYPOINT`, `CMD`",
        source: Source::Files(&[(
            "Dockerfile",
            "FROM busybox\nENV A=\"b c\" D=e\nLABEL org.example/x=\"y z\"\nWORKDIR /srv/app\nEXPOSE 8080 53/udp\n\
             VOLUME [\"/data\"]\nSTOPSIGNAL SIGINT\nENTRYPOINT [\"/bin/run\"]\nCMD [\"--flag\", \"a b\"]\n",
        )]),
        check: |image, _| {
            expect_config(image, "WorkingDir", json!("/srv/app"))?;
            expect_config(image, "ExposedPorts", json!({"53/udp": {}, "8080/tcp": {}}))?;
            expect_config(image, "Volumes", json!({"/data": {}}))?;
            expect_config(image, "StopSignal", json!("SIGINT"))?;
            expect_config(image, "Entrypoint", json!(["/bin/run"]))?;
            expect_config(image, "Cmd", json!(["--flag", "a b"]))?;
            expect(
                "the label",
                &image.config["config"]["Labels"]["org.example/x"],
                &json!("y z"),
            )?;
            let env = image.config["config"]["Env"].to_string();
            expect("ENV", env.contains("\"A=b c\"") && env.contains("\"D=e\""), true)?;
            expect_entry(image, "srv/app", "drwxr-xr-x", "0/0")
        },
        ..CASE
    },
    Case {
        name: "`SHELL`",
        source: Source::Files(&[(
            "Dockerfile",
            "FROM busybox\nSHELL [\"/bin/sh\", \"-e\", \"-c\"]\nRUN echo \"$-\" > /flags\n",
        )]),
        check: |image, _| {
            expect_config(image, "Shell", json!(["/bin/sh", "-e", "-c"]))?;
            expect("-e", image.file("flags").unwrap_or_default().contains('e'), true)
        },
        ..CASE
    },
    Case {
        name: "`USER`: commands as another user, setuid programs",
        source: Source::Files(&[(
            "Dockerfile",
            "FROM debian:bookworm-slim\nRUN echo app:x:1234:1234::/:/bin/sh >> /etc/passwd && mkdir -p /w && chown 1234:5678 /w\n\
             RUN cp /usr/bin/id /w/id && chmod 4755 /w/id\n\
             USER 1234:5678\nRUN id -u > /w/uid; id -g > /w/gid; /w/id -u > /w/setuid; ! touch /root-only\n\
             USER app\n",
        )]),
        check: |image, _| {
            expect_config(image, "User", json!("app"))?;
            expect_file(image, "w/uid", "1234\n")?;
            expect_file(image, "w/gid", "5678\n")?;
            expect_file(image, "w/setuid", "0\n")?;
            expect_entry(image, "w/id", "-rwsr-xr-x", "0/0")?;
            expect_entry(image, "w/uid", "-rw-r--r--", "1234/5678")?;
            expect_absent(image, &["root-only"])
        },
        ..CASE
    },
    Case {
        name: "modes and owners of files and folders",
        source: Source::Files(&[(
            "Dockerfile",
            "FROM busybox\nRUN mkdir -m 700 /private && mkdir /plain && mkdir -m 1777 /sticky && mkdir -m 2775 /group && \
             chown 5:6 /group && touch /plain/file && chmod 640 /plain/file && chown 65534:65534 /plain/file\nWORKDIR /made\n",
        )]),
        check: |image, _| {
            expect_entry(image, "private", "drwx------", "0/0")?;
            expect_entry(image, "plain", "drwxr-xr-x", "0/0")?;
            expect_entry(image, "sticky", "drwxrwxrwt", "0/0")?;
            expect_entry(image, "group", "drwxrwsr-x", "5/6")?;
            expect_entry(image, "plain/file", "-rw-r-----", "65534/65534")?;
            expect_entry(image, "made", "drwxr-xr-x", "0/0")
        },
        ..CASE
    },
    Case {
        name: "deleted and replaced files",
        source: Source::Files(&[(
            "Dockerfile",
            "FROM busybox AS base\nRUN mkdir /d /e && echo a > /d/a && echo b > /d/b && echo e > /e/e\n\
             FROM base\nRUN rm /d/a && rm -r /e && mkdir /e && echo new > /e/new\nRUN rm -r /d/b && mkdir /d/b\n",
        )]),
        check: |image, _| {
            expect_absent(image, &["d/a", "e/e"])?;
            expect_file(image, "e/new", "new\n")?;
            expect_entry(image, "d/b", "drwxr-xr-x", "0/0")
        },
        ..CASE
    },
    Case {
        name: "hidden files",
        source: Source::Files(&[
            ("Dockerfile", "FROM scratch\nCOPY . /all/\nCOPY .config/..two /two\n"),
            (".env", "env\n"),
            (".config/..two", "two\n"),
            (".config/.deep/.x", "x\n"),
        ]),
        check: |image, _| {
            expect_file(image, "all/.env", "env\n")?;
            expect_file(image, "two", "two\n")?;
            expect_file(image, "all/.config/.deep/.x", "x\n")
        },
        ..CASE
    },
    Case {
        name: "symbolic and hard links",
        source: Source::Links {
            files: &[
                (
                    "Dockerfile",
                    "FROM busybox\nCOPY d /d\nCOPY link /followed\nRUN echo h > /h && ln /h /hard && ln -s ../d/file /tmp/up\n",
                ),
                ("d/file", "file\n"),
                ("d/sub/x", "x\n"),
            ],
            links: &[
                ("link", "d/file"),
                ("d/to-file", "file"),
                ("d/to-folder", "sub"),
                ("d/absolute", "/etc/passwd"),
                ("d/dangling", "../../nowhere"),
            ],
        },
        check: |image, _| {
            expect_file(image, "followed", "file\n")?;
            expect_link(image, "d/to-file", "file")?;
            expect_link(image, "d/to-folder", "sub")?;
            expect_link(image, "d/absolute", "/etc/passwd")?;
            expect_link(image, "d/dangling", "../../nowhere")?;
            expect_link(image, "tmp/up", "../d/file")?;
            expect_file(image, "d/sub/x", "x\n")?;
            let tree = image.tree();
            let hard = ["h", "hard"]
                .iter()
                .filter(|path| tree[**path].mode.starts_with('h'))
                .count();
            expect("the number of hard links among /h and /hard", hard, 1)
        },
        ..CASE
    },
    Case {
        name: "names in Unicode and with spaces",
        source: Source::Files(&[
            (
                "Dockerfile",
                "FROM busybox\nCOPY [\"naïve file.txt\", \"/d ü/\"]\nCOPY 文件 /文件\nRUN echo 🧱 > \"/d ü/🧱\"\n",
            ),
            ("naïve file.txt", "naïve\n"),
            ("文件/é ñ", "inner\n"),
        ]),
        check: |image, _| {
            expect_file(image, "d ü/naïve file.txt", "naïve\n")?;
            expect_file(image, "文件/é ñ", "inner\n")?;
            expect_file(image, "d ü/🧱", "🧱\n")
        },
        ..CASE
    },
    Case {
        name: "`.dockerignore`: folders, `**`, exceptions",
        source: Source::Files(&[
            ("Dockerfile", "FROM scratch\nCOPY . /all/\n"),
            (
                ".dockerignore",
                "# comment\nnode_modules\n**/*.log\n*.md\n!README.md\nsecret/*\n!secret/public\n",
            ),
            ("node_modules/x/index.js", "x\n"),
            ("a.log", "x\n"),
            ("deep/er/b.log", "x\n"),
            ("deep/er/kept", "kept\n"),
            ("NOTES.md", "x\n"),
            ("README.md", "read me\n"),
            ("secret/key", "x\n"),
            ("secret/public", "public\n"),
        ]),
        check: |image, _| {
            expect_file(image, "all/deep/er/kept", "kept\n")?;
            expect_file(image, "all/README.md", "read me\n")?;
            expect_file(image, "all/secret/public", "public\n")?;
            expect_absent(
                image,
                &[
                    "all/node_modules/x/index.js",
                    "all/a.log",
                    "all/deep/er/b.log",
                    "all/NOTES.md",
                    "all/secret/key",
                ],
            )
        },
        ..CASE
    },
    Case {
        name: "an instruction that doesn't exist",
        source: Source::Files(&[("Dockerfile", "FROM busybox\nRUNN true\n")]),
        buildkit: Support::Refused {
            code: "dockerfile_invalid",
            words: &["line 2", "RUNN"],
        },
        buildah: Support::Refused {
            code: "dockerfile_invalid",
            words: &["RUNN"],
        },
        ..CASE
    },
    Case {
        name: "a command that fails",
        source: Source::Files(&[("Dockerfile", "FROM busybox\nRUN echo before && exit 42\n")]),
        buildkit: FAILS,
        buildah: FAILS,
        ..CASE
    },
];

const HEREDOC: Support = Support::Refused {
    code: "dockerfile_invalid",
    words: &["heredoc", "buildkit"],
};

const FAILS: Support = Support::Refused {
    code: "build_failed",
    words: &["echo before && exit 42", "exit code 42"],
};
