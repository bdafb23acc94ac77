#!/usr/bin/env bash
# A PostgreSQL server on 127.0.0.1, as root: postgres.sh start FOLDER PORT, postgres.sh stop FOLDER.
# Anyone of this machine gets in as postgres; FOLDER must be one that the postgres user may enter.
set -euo pipefail
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
folder=$(realpath "$2")
cd "$folder"
as_postgres() { runuser -u postgres -- "$@" >/dev/null; }
control=("$bin/pg_ctl" -D "$folder/data" -w -l "$folder/log")
if [ "$1" = stop ]; then
  as_postgres "${control[@]}" -m immediate stop
  exit
fi
chown postgres "$folder"
as_postgres "$bin/initdb" -D "$folder/data" --auth=trust
as_postgres "${control[@]}" -o "-p $3 -c listen_addresses=127.0.0.1 -k $folder" start
