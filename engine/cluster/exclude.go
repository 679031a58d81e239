package cluster

// excluded reports whether the walk leaves out a file, or the contents of a
// directory, of this base name: WAL-G's list, which holds at any depth.
//
// needed tells that the server does not start, or complains, without the
// directory: when it is a symbolic link in the data directory, the backup
// gets a plain directory in its place.
func excluded(base string) (out, needed bool) {
	switch base {
	case "pg_wal", "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial",
		"pg_snapshots", "pg_stat_tmp", "pg_subtrans":
		return true, true
	case "log", "pg_log", "pg_xlog", "pgsql_tmp",
		"postgresql.auto.conf.tmp", "postmaster.pid", "postmaster.opts",
		"recovery.conf", "standby.signal":
		return true, false
	}
	return false, false
}

// CatchupExclusions are the base names that a catch-up backup leaves out
// besides the usual ones: the standby keeps its own configuration.
func CatchupExclusions() []string {
	return []string{"pg_hba.conf", "postgresql.conf", "postgresql.auto.conf"}
}

// coreDirectory reports whether the top-level directory holds data without
// which a restored cluster is incomplete.
func coreDirectory(top string) bool {
	switch top {
	case "base", "global", "pg_xact", "pg_multixact", "pg_commit_ts",
		"pg_twophase", "pg_logical", "pg_tblspc":
		return true
	}
	return false
}
