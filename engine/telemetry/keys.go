package telemetry

// Names of log attributes and, the same, of span attributes. One notion has
// one name everywhere, so that a search for it finds every line.
const (
	KeyCluster  = "cluster"  // the cluster's name (WALHERD_CLUSTER)
	KeyStorage  = "storage"  // a storage's name, of several
	KeyObject   = "object"   // an object's name in the bucket
	KeyPath     = "path"     // a file on this host
	KeySegment  = "segment"  // a WAL segment's name, 24 digits
	KeyTimeline = "timeline" // a timeline's number
	KeyLSN      = "lsn"      // a WAL position, X/Y
	KeyBackup   = "backup"   // a backup's name
	KeyPart     = "part"     // a part's number in its backup, from 1
	KeyAttempt  = "attempt"  // which try of a part or job this is, from 1
	KeyWorker   = "worker"   // a worker's name in the fleet
	KeyKind     = "kind"     // a job's kind (archive, part, commit, ...)
	KeyStream   = "stream"   // a stream of the broker
	KeySubject  = "subject"  // a subject of the broker
	KeySequence = "sequence" // a message's number in its stream
	KeyBytes    = "bytes"    // plain bytes
	KeyStored   = "stored"   // bytes as stored: compressed, encrypted
	KeyCount    = "count"    // how many of what the line speaks of
	KeyDuration = "duration" // how long it took
	KeyReason   = "reason"   // why a decision was made
	KeyError    = "error"    // an error's text
	KeyTraceID  = "trace_id" // added by the Handler
)
