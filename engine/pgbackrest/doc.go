// Package pgbackrest reads repositories of pgBackRest (https://pgbackrest.org),
// in repository format 5, which versions 2.00 and later write: the list of
// backups, the archived WAL, and full, differential and incremental backups,
// which it restores with package restore. It writes nothing to a repository.
//
// A repository holds, for each stanza (a cluster's name):
//
//	backup/STANZA/backup.info                  the list of backups
//	backup/STANZA/LABEL/backup.manifest        what is in a backup
//	backup/STANZA/LABEL/pg_data/PATH[.EXT]     a file of the data directory
//	backup/STANZA/LABEL/pg_tblspc/OID/PATH[.EXT]
//	backup/STANZA/LABEL/bundle/N               small files, one behind the other
//	archive/STANZA/archive.info                which clusters the WAL is of
//	archive/STANZA/VERSION-ID/SEG[:16]/SEG-SHA1[.EXT]
//	archive/STANZA/VERSION-ID/FILE             history and backup history files
//
// Both info files and the manifest have a copy beside them (NAME.copy) that is
// read when they cannot be. They consist of sections of lines KEY=VALUE, the
// values in JSON, and end with a SHA-1 over all of it. In an encrypted
// repository the repository's passphrase opens the info files, each of which
// holds the passphrase of what it lists: archive.info that of the WAL,
// backup.info that of the manifests, and a manifest that of the backup's files.
// What is encrypted is compressed first.
//
// A differential or incremental backup lists every file of the cluster; those
// that did not change name the backup that has them. So each backup restores by
// its manifest alone, out of several folders. Files that are stored as blocks
// of earlier versions (repo-block) are refused with ErrUnsupported: pgbackrest
// restore has to do it.
//
// How it fails: a missing stanza, backup or WAL file is an error that matches
// fs.ErrNotExist; a document that is damaged is ErrCorrupt, as is content whose
// SHA-1 or size is not what the manifest or the file's name says; what the
// passphrase does not open is ErrPassphrase. Nothing is trusted: paths of a
// manifest stay in the data directory, labels and references name backups and
// no other folders.
package pgbackrest
