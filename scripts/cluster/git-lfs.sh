#!/bin/sh
# Git LFS for the git server, as a CGI program: its batch API as far as downloads need it, and the objects, from where
# `git lfs push` leaves them in a repository beside it.
# https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
set -eu

answer() { # STATUS TYPE: the body follows
    printf 'Status: %s\r\nContent-Type: %s\r\n\r\n' "$1" "$2"
}
json=application/vnd.git-lfs+json
repository=${PATH_INFO%%/info/lfs/*}
objects=$GIT_PROJECT_ROOT$repository/lfs/objects

case $REQUEST_METHOD:${PATH_INFO#"$repository/info/lfs"} in
POST:/objects/batch)
    answer '200 OK' $json
    mkdir -p "$objects"
    jq -c --arg url "http://$HTTP_HOST$repository/info/lfs/objects/" \
        --arg kept "$(find "$objects" -type f -printf '%f\n')" '
        ($kept | split("\n")) as $kept
        | {transfer: "basic", objects: [.objects[] | {oid, size} +
            if .oid | IN($kept[]) then {actions: {download: {href: ($url + .oid)}}}
            else {error: {code: 404, message: "there is no such object"}} end]}'
    ;;
GET:/objects/*)
    id=${PATH_INFO##*/}
    object=$(find "$objects" -type f -name "$id")
    if [ -n "$object" ]; then
        answer '200 OK' application/octet-stream
        cat "$object"
    else
        answer '404 Not Found' $json
        echo '{"message": "there is no such object"}'
    fi
    ;;
*)
    answer '404 Not Found' $json
    echo '{"message": "this server has only downloads"}'
    ;;
esac
