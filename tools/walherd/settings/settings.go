// Package settings is the configuration of walherd as one documented struct,
// and the reading of it from flags, environment and a config file.
//
// Settings has one field per setting: everything WAL-G for PostgreSQL knows,
// under the same names, and walherd's own WALHERD_*. The tags of a field are
// its documentation, its default and its bounds; flags, the docs page, the
// warnings and Validate are all made from them.
//
// It fails loudly. A config file that was named and cannot be read, a value
// of the wrong type, or a bound that is broken is an error that names the
// setting and where it was written: a backup tool that shrugs at its config
// file sooner or later writes to the wrong place. A setting walherd does not
// act on yet is refused if ignoring it would change where or how bytes are
// stored (Settings.Storage), and is a warning otherwise.
//
// No other package reads the environment or imports envconfig; libraries are
// given plain values.
package settings

import "time"

// Settings is every setting, decoded. The zero value is not useful; get one
// from Load or LoadProcess.
//
// The tags, beside envconfig's own (envconfig, default):
//
//	desc      what it does, one sentence (required)
//	unit      of a number
//	min, max  bounds, inclusive
//	enum      the accepted words, separated by |
//	alias     other names, separated by commas, in order of preference
//	prefixed  may also be written with WALG_ or WALE_ in front
//	secret    never printed; "url" hides only the user part of an address
//	nested    may be a map or list in a config file
//	later     the feature that will use it; walherd does not act on it yet
//	effect    of setting a later field: "refuse" or "warn" (none: harmless)
//	laterif   the values that are later, where others work already
type Settings struct {
	General    General    `desc:"General"`
	Walherd    Walherd    `desc:"Queue and workers"`
	Postgres   Postgres   `desc:"PostgreSQL"`
	Encryption Encryption `desc:"Encryption"`
	File       File       `desc:"File storage"`
	S3         S3         `desc:"S3"`
	Stores     Stores     `desc:"Other storages"`
	Failover   Failover   `desc:"Failover storages"`
	Monitoring Monitoring `desc:"Monitoring and profiling"`

	set map[string]setValue // by setting name; only what was given
}

// General holds settings that many commands share.
type General struct {
	ConfigPath     string `envconfig:"WALG_CONFIG_PATH" desc:"config file (json, yaml, yml, toml or env); --config comes first, without both it is .walg.EXT in the passwd home directory"`
	LogLevel       string `envconfig:"WALG_LOG_LEVEL" default:"NORMAL" enum:"NORMAL|DEVEL|ERROR" desc:"how much is logged"`
	LogDestination string `envconfig:"WALG_LOG_DESTINATION" default:"stderr" desc:"stderr, or a file the log is appended to"`

	StoragePrefix     string `envconfig:"WALG_STORAGE_PREFIX" desc:"path inserted below the root of the storage"`
	CompressionMethod string `envconfig:"WALG_COMPRESSION_METHOD" default:"lz4" enum:"lz4|lzma|zstd|brotli|none" desc:"how new objects are compressed; every method is read"`
	ZstdLevel         string `envconfig:"WALG_ZSTD_LEVEL" enum:"fastest|default|better|best" desc:"effort of zstd; only with WALG_COMPRESSION_METHOD=zstd"`

	UploadConcurrency     int      `envconfig:"WALG_UPLOAD_CONCURRENCY" default:"16" min:"1" desc:"uploads at a time"`
	UploadDiskConcurrency int      `envconfig:"WALG_UPLOAD_DISK_CONCURRENCY" default:"1" min:"1" desc:"parts of a backup filled at a time"`
	UploadQueue           int      `envconfig:"WALG_UPLOAD_QUEUE" default:"2" min:"0" desc:"filled parts that may still be uploading while the next is filled"`
	DownloadConcurrency   int      `envconfig:"WALG_DOWNLOAD_CONCURRENCY" default:"10" min:"0" desc:"downloads at a time, and how far wal-fetch prefetches; 1 turns prefetch off, 0 counts as 1"`
	DownloadFileRetries   int      `envconfig:"WALG_DOWNLOAD_FILE_RETRIES" default:"15" min:"0" desc:"rounds in which files that failed to extract are tried again"`
	TotalBGUploadedLimit  int      `envconfig:"TOTAL_BG_UPLOADED_LIMIT" default:"32" min:"0" desc:"WAL files one wal-push archives, the given one included"`
	DiskRateLimit         ByteSize `envconfig:"WALG_DISK_RATE_LIMIT" default:"0" min:"0" unit:"bytes/s" desc:"limit of reading during backup-push; 0 is none"`
	NetworkRateLimit      ByteSize `envconfig:"WALG_NETWORK_RATE_LIMIT" default:"0" min:"0" unit:"bytes/s" desc:"limit of storage traffic of a backup; 0 is none"`
	TarSizeThreshold      ByteSize `envconfig:"WALG_TAR_SIZE_THRESHOLD" default:"1073741823" min:"1" unit:"bytes" desc:"size at which a part of a backup is closed and the next is begun"`
	TarDisableFsync       bool     `envconfig:"WALG_TAR_DISABLE_FSYNC" default:"false" desc:"restore without syncing files to disk"`
	DirectIO              bool     `envconfig:"WALG_DIRECT_IO" default:"false" later:"direct I/O" effect:"warn" desc:"read data files past the page cache"`
	DirectIOBlockCount    int      `envconfig:"WALG_DIRECT_IO_BLOCK_COUNT" default:"32" min:"1" unit:"4 KiB blocks" later:"direct I/O" desc:"size of one direct read"`
	TargetStorage         string   `envconfig:"WALG_TARGET_STORAGE" desc:"storage to use, as --target-storage: default or a failover storage"`

	SerializerType       string `envconfig:"WALG_SERIALIZER_TYPE" desc:"retired; json_streamed is the only one"`
	StreamCreateCommand  string `envconfig:"WALG_STREAM_CREATE_COMMAND" desc:"accepted for other databases' sake, unused"`
	StreamRestoreCommand string `envconfig:"WALG_STREAM_RESTORE_COMMAND" desc:"accepted for other databases' sake, unused"`

	GoMaxProcs int    `envconfig:"GOMAXPROCS" default:"0" min:"0" desc:"processors the process uses at a time; 0 is all, --turbo ignores it"`
	GoDebug    string `envconfig:"GODEBUG" desc:"debug switches of the Go runtime"`
}

// Walherd holds walherd's own settings.
type Walherd struct {
	NATSURL        string        `envconfig:"WALHERD_NATS_URL" alias:"NATS_URL" secret:"url" desc:"NATS servers, separated by commas; without it the broker is inside the command"`
	NATSCreds      string        `envconfig:"WALHERD_NATS_CREDS" desc:"credentials file of the broker's user (JWT and seed)"`
	NATSNKey       string        `envconfig:"WALHERD_NATS_NKEY" desc:"file with the NKey seed of the broker's user"`
	NATSUser       string        `envconfig:"WALHERD_NATS_USER" desc:"user name at the broker"`
	NATSPassword   string        `envconfig:"WALHERD_NATS_PASSWORD" secret:"true" desc:"password of that user"`
	NATSToken      string        `envconfig:"WALHERD_NATS_TOKEN" secret:"true" desc:"token that the broker asks for"`
	NATSCA         string        `envconfig:"WALHERD_NATS_CA" desc:"file of certificate authorities that the broker's certificate is checked against"`
	NATSCert       string        `envconfig:"WALHERD_NATS_CERT" desc:"client certificate file for the broker"`
	NATSKey        string        `envconfig:"WALHERD_NATS_KEY" desc:"key file of that certificate"`
	Cluster        string        `envconfig:"WALHERD_CLUSTER" default:"default" desc:"name of the PostgreSQL cluster in the queue: letters, digits, _ and -"`
	Replicas       int           `envconfig:"WALHERD_REPLICAS" default:"1" min:"1" max:"5" desc:"copies the broker keeps of each stream: 1, 3 or 5"`
	WALAck         string        `envconfig:"WALHERD_WAL_ACK" default:"stored" enum:"stored|queued" desc:"when PostgreSQL is told that WAL is archived: stored is once the object is durable in storage, queued is once the broker holds it"`
	WALAckAccept   string        `envconfig:"WALHERD_WAL_ACK_ACCEPT" desc:"shortcomings of the broker to put up with under queued: replicas (fewer than three servers), sync (no proof that they sync every write), or both with a comma"`
	SpoolDir       string        `envconfig:"WALHERD_SPOOL_DIR" desc:"directory on this host for copies of WAL that the queue holds and no worker has stored yet; queued needs it"`
	SpoolMaxBytes  ByteSize      `envconfig:"WALHERD_SPOOL_MAX_BYTES" default:"4294967296" min:"1" unit:"bytes" desc:"room for them; when it is used up PostgreSQL keeps its WAL"`
	Socket         string        `envconfig:"WALHERD_SOCKET" desc:"unix socket at which the agent takes requests of an archive library or a daemon client"`
	HealthListen   string        `envconfig:"WALHERD_HEALTH_LISTEN" desc:"address (host:port) at which a long-running process tells over HTTP how it is: /livez, /readyz, /queue"`
	BackupSchedule string        `envconfig:"WALHERD_BACKUP_SCHEDULE" desc:"when the agents take a backup, in cron's notation (\"30 3 * * *\"); of several hosts of a cluster one takes it"`
	VerifySchedule string        `envconfig:"WALHERD_VERIFY_SCHEDULE" desc:"when the agents verify the archived WAL (wal-verify integrity timeline), in cron's notation; a failure is an event and shows in status"`
	Retention      string        `envconfig:"WALHERD_RETENTION" desc:"what is deleted on schedule: delete commands without the word delete, separated by semicolons (\"retain --window 14d; garbage --window 14d\")"`
	RetentionCron  string        `envconfig:"WALHERD_RETENTION_SCHEDULE" desc:"when WALHERD_RETENTION is done, in cron's notation; of several workers and agents of a cluster one asks for it, and an agent only where the broker lets it"`
	DeleteAge      time.Duration `envconfig:"WALHERD_DELETE_SAFETY_AGE" default:"24h" min:"0s" desc:"how long after its last object a backup without a sentinel is taken to be in the making; delete leaves it alone. So it is, for an hour at least, with uploads that were not finished"`
	DeleteRate     int           `envconfig:"WALHERD_DELETE_RATE" default:"0" min:"0" unit:"objects/s" desc:"limit of deleting; 0 is none"`
	ServeDir       string        `envconfig:"WALHERD_SERVE_DIR" desc:"directory of the broker that serve runs"`
	ServeListen    string        `envconfig:"WALHERD_SERVE_LISTEN" default:"127.0.0.1:4222" desc:"loopback address of the broker that serve runs"`
	ServeMemory    ByteSize      `envconfig:"WALHERD_SERVE_MEMORY" default:"536870912" min:"134217728" unit:"bytes" desc:"memory for the streams of that broker; its process may take 1 GiB more and ends beyond that"`
	WorkerSlots    int           `envconfig:"WALHERD_WORKER_SLOTS" default:"2" min:"1" desc:"backup parts a worker handles at a time"`
	WALSlots       int           `envconfig:"WALHERD_WAL_SLOTS" default:"2" min:"1" desc:"WAL files a worker archives at a time, reserved beside WALHERD_WORKER_SLOTS"`
	AckWait        time.Duration `envconfig:"WALHERD_ACK_WAIT" default:"30s" min:"1s" desc:"how long a silent worker keeps its job"`
	JobTries       int           `envconfig:"WALHERD_JOB_TRIES" default:"5" min:"1" desc:"deliveries of a job before it is a dead letter"`
	WALPushTimeout time.Duration `envconfig:"WALHERD_WAL_PUSH_TIMEOUT" default:"5m" min:"1s" desc:"how long wal-push waits for its file to be archived before it fails and PostgreSQL retries"`
	PartTimeout    time.Duration `envconfig:"WALHERD_PART_TIMEOUT" default:"10m" min:"1s" desc:"how long a part may stand still before the backup fails"`
	// Room for WAL that no worker has stored yet, and for parts under way.
	MaxWALBytes   ByteSize `envconfig:"WALHERD_QUEUE_WAL_BYTES" default:"17179869184" min:"16777216" unit:"bytes" desc:"room for WAL in the broker, reserved when its stream is made; when it is full PostgreSQL keeps its WAL"`
	MaxChunkBytes ByteSize `envconfig:"WALHERD_QUEUE_CHUNK_BYTES" default:"1073741824" min:"67108864" unit:"bytes" desc:"memory for backup parts under way in the broker, reserved when its stream is made"`
	// Window stays within what nats-server buffers for a connection before
	// it cuts it (max_pending, 64 MiB by default).
	Window ByteSize `envconfig:"WALHERD_WINDOW" default:"33554432" min:"1048576" max:"67108864" unit:"bytes" desc:"bytes of one part that may be under way to the worker"`
}

// Postgres holds the connection and everything particular to PostgreSQL.
type Postgres struct {
	Host               string `envconfig:"PGHOST" desc:"server address, socket directory, or a list separated by commas"`
	Port               string `envconfig:"PGPORT" desc:"server port, or a list separated by commas"`
	User               string `envconfig:"PGUSER" desc:"user to connect as"`
	Password           string `envconfig:"PGPASSWORD" secret:"true" desc:"password to connect with"`
	PassFile           string `envconfig:"PGPASSFILE" desc:"password file; without it .pgpass in the home directory"`
	Database           string `envconfig:"PGDATABASE" desc:"database to connect to"`
	SSLMode            string `envconfig:"PGSSLMODE" desc:"TLS mode: disable, allow, prefer, require, verify-ca, verify-full"`
	SSLCert            string `envconfig:"PGSSLCERT" desc:"client certificate file"`
	SSLKey             string `envconfig:"PGSSLKEY" desc:"client key file"`
	SSLRootCert        string `envconfig:"PGSSLROOTCERT" desc:"file of certificate authorities"`
	SSLPassword        string `envconfig:"PGSSLPASSWORD" secret:"true" desc:"password of the client key"`
	SSLSNI             string `envconfig:"PGSSLSNI" desc:"whether the server's name is sent (1 or 0)"`
	SSLNegotiation     string `envconfig:"PGSSLNEGOTIATION" desc:"postgres or direct"`
	SSLCertMode        string `envconfig:"PGSSLCERTMODE" desc:"disable, allow or require a client certificate"`
	ChannelBinding     string `envconfig:"PGCHANNELBINDING" desc:"disable, prefer or require"`
	RequireAuth        string `envconfig:"PGREQUIREAUTH" desc:"authentication methods accepted from the server"`
	TargetSessionAttrs string `envconfig:"PGTARGETSESSIONATTRS" desc:"which server of a list will do: any, primary, standby and so on"`
	ConnectTimeout     string `envconfig:"PGCONNECT_TIMEOUT" unit:"s" desc:"how long to wait for a connection"`
	Service            string `envconfig:"PGSERVICE" desc:"section of the service file"`
	ServiceFile        string `envconfig:"PGSERVICEFILE" desc:"service file"`
	Options            string `envconfig:"PGOPTIONS" desc:"options sent to the server"`
	MinProtocolVersion string `envconfig:"PGMINPROTOCOLVERSION" desc:"lowest protocol version to accept"`
	MaxProtocolVersion string `envconfig:"PGMAXPROTOCOLVERSION" desc:"highest protocol version to ask for"`
	TimeZone           string `envconfig:"PGTZ" desc:"time zone of the session"`
	AppName            string `envconfig:"PGAPPNAME" default:"wal-g" desc:"application_name of the session"`
	Data               string `envconfig:"PGDATA" desc:"data directory"`

	WALSize     int    `envconfig:"WALG_PG_WAL_SIZE" default:"16" min:"1" max:"1024" unit:"MB" desc:"size of a WAL segment"`
	WALPageSize int    `envconfig:"WALG_PG_WAL_PAGE_SIZE" default:"8192" min:"1024" max:"65536" unit:"bytes" desc:"size of a WAL page"`
	BlockSize   int    `envconfig:"WALG_PG_BLOCK_SIZE" default:"8192" min:"1024" max:"32768" unit:"bytes" desc:"size of a data page"`
	SlotName    string `envconfig:"WALG_SLOTNAME" default:"walg" desc:"replication slot of wal-receive: letters, digits and _"`

	PreventWALOverwrite bool   `envconfig:"WALG_PREVENT_WAL_OVERWRITE" default:"false" desc:"fail rather than replace archived WAL by other content"`
	UploadWALMetadata   string `envconfig:"WALG_UPLOAD_WAL_METADATA" default:"NOMETADATA" enum:"NOMETADATA|INDIVIDUAL|BULK" desc:"whether archived WAL gets a JSON object beside it, each or per 16 segments"`
	UseWALDelta         bool   `envconfig:"WALG_USE_WAL_DELTA" default:"false" desc:"where WAL is stored: keep beside each segment a map of the blocks it changes, so that an increment need not scan"`
	ForceWALDelta       bool   `envconfig:"WALG_FORCE_WAL_DELTA" default:"false" desc:"fail rather than scan when neither the server's WAL summaries nor those maps tell what an increment has to hold"`

	DeltaMaxSteps       int    `envconfig:"WALG_DELTA_MAX_STEPS" default:"0" min:"0" desc:"increments between full backups; 0 is full backups only"`
	DeltaOrigin         string `envconfig:"WALG_DELTA_ORIGIN" default:"LATEST" enum:"LATEST|LATEST_FULL" desc:"what an increment is based on: the latest backup or the full backup of its chain"`
	DeltaFromName       string `envconfig:"WALG_DELTA_FROM_NAME" desc:"base of the next increment by name, as --delta-from-name"`
	DeltaFromUserData   string `envconfig:"WALG_DELTA_FROM_USER_DATA" desc:"base of the next increment by user data, as --delta-from-user-data"`
	SentinelUserData    string `envconfig:"WALG_SENTINEL_USER_DATA" desc:"JSON kept with the backup, as --add-user-data"`
	FetchTargetUserData string `envconfig:"WALG_FETCH_TARGET_USER_DATA" desc:"which backup to fetch, by its user data"`

	UseReverseUnpack       bool `envconfig:"WALG_USE_REVERSE_UNPACK" default:"false" desc:"restore a chain newest first"`
	SkipRedundantTars      bool `envconfig:"WALG_SKIP_REDUNDANT_TARS" default:"false" desc:"leave out parts of the bases in which nothing is still needed"`
	UseRatingComposer      bool `envconfig:"WALG_USE_RATING_COMPOSER" default:"false" desc:"pack files that change alike together"`
	UseCopyComposer        bool `envconfig:"WALG_USE_COPY_COMPOSER" default:"false" desc:"copy unchanged parts from the previous full backup"`
	UseDatabaseComposer    bool `envconfig:"WALG_USE_DATABASE_COMPOSER" default:"false" desc:"pack each database apart"`
	VerifyPageChecksums    bool `envconfig:"WALG_VERIFY_PAGE_CHECKSUMS" default:"false" desc:"check page checksums during backup-push"`
	StoreAllCorruptBlocks  bool `envconfig:"WALG_STORE_ALL_CORRUPT_BLOCKS" default:"false" desc:"record every corrupt block instead of the first ten"`
	WithoutFilesMetadata   bool `envconfig:"WALG_WITHOUT_FILES_METADATA" default:"false" desc:"keep no list of files, which saves memory on clusters of very many files; such a backup is full, whatever WALG_DELTA_MAX_STEPS says"`
	DisablePartialRestore  bool `envconfig:"WALG_DISABLE_PARTIAL_RESTORE" default:"false" desc:"do not record database and table names, without which a partial restore cannot work"`
	IntegrityMaxDelayedWAL int  `envconfig:"WALG_INTEGRITY_MAX_DELAYED_WALS" default:"0" min:"0" unit:"segments" desc:"newest segments wal-verify may find missing without alarm"`

	AliveCheckInterval     time.Duration `envconfig:"WALG_ALIVE_CHECK_INTERVAL" default:"1m" min:"0s" desc:"how often backup-push checks that PostgreSQL is alive; 0 is never"`
	StopBackupTimeout      time.Duration `envconfig:"WALG_STOP_BACKUP_TIMEOUT" default:"0s" min:"0s" desc:"limit of the call that ends a backup; 0 is none"`
	PrefetchDir            string        `envconfig:"WALG_PREFETCH_DIR" desc:"where wal-fetch keeps prefetched WAL; without it beside the destination"`
	ReadyRename            bool          `envconfig:"PG_READY_RENAME" default:"false" desc:"rename .ready to .done for WAL archived in the background"`
	DaemonWALUploadTimeout time.Duration `envconfig:"WALG_DAEMON_WAL_UPLOAD_TIMEOUT" default:"60s" min:"0s" desc:"limit of one wal-push in the daemon; 0 is none but WALHERD_WAL_PUSH_TIMEOUT"`
	PgBackRestStanza       string        `envconfig:"PGBACKREST_STANZA" default:"main" desc:"stanza of the pgBackRest repository to read"`
	PgBackRestCipherPass   string        `envconfig:"PGBACKREST_REPO1_CIPHER_PASS" secret:"true" desc:"passphrase of an encrypted pgBackRest repository, its repo1-cipher-pass"`
	NotifySocket           string        `envconfig:"NOTIFY_SOCKET" desc:"systemd's socket, told that the service is ready and alive"`
}

// Encryption holds keys. What is set and cannot be used is refused by
// engine/seal before anything is written: ignoring it would store plaintext.
type Encryption struct {
	PGPKey                   string        `envconfig:"WALG_PGP_KEY" secret:"true" desc:"armoured OpenPGP key; \\n stands for a line end"`
	PGPKeyPath               string        `envconfig:"WALG_PGP_KEY_PATH" desc:"file of an armoured OpenPGP key"`
	PGPKeyPassphrase         string        `envconfig:"WALG_PGP_KEY_PASSPHRASE" secret:"true" desc:"passphrase of a private OpenPGP key"`
	GPGKeyID                 string        `envconfig:"WALG_GPG_KEY_ID" alias:"WALE_GPG_KEY_ID,GPG_KEY_ID" desc:"key of an external gpg; deprecated"`
	EnvelopePGPKey           string        `envconfig:"WALG_ENVELOPE_PGP_KEY" secret:"true" desc:"OpenPGP key wrapped by a key service, base64"`
	EnvelopePGPKeyPath       string        `envconfig:"WALG_ENVELOPE_PGP_KEY_PATH" desc:"file of a wrapped OpenPGP key"`
	EnvelopeCacheExpiration  time.Duration `envconfig:"WALG_ENVELOPE_CACHE_EXPIRATION" default:"0s" min:"0s" desc:"how long an unwrapped key is kept; 0 is for ever"`
	EnvelopeYCKMSKeyID       string        `envconfig:"WALG_ENVELOPE_PGP_YC_CSE_KMS_KEY_ID" desc:"Yandex KMS key that wraps the OpenPGP key"`
	EnvelopeYCServiceAccount string        `envconfig:"WALG_ENVELOPE_PGP_YC_SERVICE_ACCOUNT_KEY_FILE" desc:"service account file for that key"`
	EnvelopeYCEndpoint       string        `envconfig:"WALG_ENVELOPE_PGP_YC_ENDPOINT" desc:"endpoint of Yandex KMS"`
	CSEKMSID                 string        `envconfig:"WALG_CSE_KMS_ID" desc:"AWS KMS key for encryption on our side"`
	CSEKMSRegion             string        `envconfig:"WALG_CSE_KMS_REGION" desc:"region of that key"`
	YCCSEKMSKeyID            string        `envconfig:"YC_CSE_KMS_KEY_ID" prefixed:"true" desc:"Yandex KMS key for encryption on our side"`
	YCServiceAccountKeyFile  string        `envconfig:"YC_SERVICE_ACCOUNT_KEY_FILE" prefixed:"true" desc:"service account file for that key"`
	LibsodiumKey             string        `envconfig:"WALG_LIBSODIUM_KEY" secret:"true" desc:"libsodium key"`
	LibsodiumKeyPath         string        `envconfig:"WALG_LIBSODIUM_KEY_PATH" desc:"file of a libsodium key"`
	LibsodiumKeyTransform    string        `envconfig:"WALG_LIBSODIUM_KEY_TRANSFORM" default:"none" enum:"none|base64|hex" desc:"how the libsodium key is written"`
}

// File is the storage in a directory.
type File struct {
	Prefix string `envconfig:"WALG_FILE_PREFIX" alias:"WALE_FILE_PREFIX" desc:"directory of the storage; it must exist"`
}

// S3 holds the settings of S3 and of stores that speak its protocol.
type S3 struct {
	Prefix                  string   `envconfig:"WALG_S3_PREFIX" alias:"WALE_S3_PREFIX" desc:"bucket and path, s3://bucket/path"`
	AccessKeyID             string   `envconfig:"AWS_ACCESS_KEY_ID" alias:"AWS_ACCESS_KEY" prefixed:"true" secret:"true" desc:"access key; without both keys the usual AWS chain is asked"`
	SecretAccessKey         string   `envconfig:"AWS_SECRET_ACCESS_KEY" alias:"AWS_SECRET_KEY" prefixed:"true" secret:"true" desc:"secret key"`
	SessionToken            string   `envconfig:"AWS_SESSION_TOKEN" prefixed:"true" secret:"true" desc:"token of temporary keys"`
	Profile                 string   `envconfig:"AWS_PROFILE" desc:"profile of the shared AWS files"`
	SharedCredentialsFile   string   `envconfig:"AWS_SHARED_CREDENTIALS_FILE" desc:"shared AWS credentials file"`
	ConfigFile              string   `envconfig:"AWS_CONFIG_FILE" desc:"shared AWS config file"`
	CABundle                string   `envconfig:"AWS_CA_BUNDLE" desc:"file of certificate authorities for AWS"`
	DefaultRegion           string   `envconfig:"AWS_DEFAULT_REGION" desc:"region if AWS_REGION is unset"`
	DefaultOutput           string   `envconfig:"AWS_DEFAULT_OUTPUT" desc:"known to AWS tools, unused"`
	WebIdentityTokenFile    string   `envconfig:"AWS_WEB_IDENTITY_TOKEN_FILE" desc:"token file of a web identity"`
	RoleARN                 string   `envconfig:"AWS_ROLE_ARN" prefixed:"true" desc:"role to assume"`
	RoleSessionName         string   `envconfig:"AWS_ROLE_SESSION_NAME" prefixed:"true" desc:"name of the assumed role's session"`
	Region                  string   `envconfig:"AWS_REGION" prefixed:"true" desc:"region of the bucket; detected if unset"`
	Endpoint                string   `envconfig:"AWS_ENDPOINT" prefixed:"true" desc:"address of the service; AWS if unset"`
	ForcePathStyle          bool     `envconfig:"AWS_S3_FORCE_PATH_STYLE" prefixed:"true" default:"false" desc:"put the bucket into the path, not the host name"`
	DualStack               bool     `envconfig:"AWS_DUAL_STACK" prefixed:"true" default:"false" desc:"use the IPv4 and IPv6 endpoint"`
	EndpointSource          string   `envconfig:"S3_ENDPOINT_SOURCE" prefixed:"true" desc:"address that answers with the node to talk to"`
	EndpointPort            int      `envconfig:"S3_ENDPOINT_PORT" prefixed:"true" default:"443" min:"1" max:"65535" desc:"port of that node"`
	EndpointProtocol        string   `envconfig:"S3_ENDPOINT_PROTOCOL" prefixed:"true" desc:"scheme for that node; the endpoint's if unset"`
	StorageClass            string   `envconfig:"S3_STORAGE_CLASS" prefixed:"true" default:"STANDARD" desc:"storage class of new objects"`
	SSE                     string   `envconfig:"S3_SSE" prefixed:"true" desc:"encryption on the server's side"`
	SSEKMSID                string   `envconfig:"S3_SSE_KMS_ID" prefixed:"true" desc:"key for S3_SSE=aws:kms"`
	SSEC                    string   `envconfig:"S3_SSE_C" prefixed:"true" secret:"true" desc:"our own key for encryption on the server's side"`
	CACertFile              string   `envconfig:"S3_CA_CERT_FILE" prefixed:"true" desc:"file of further certificate authorities"`
	MaxPartSize             ByteSize `envconfig:"S3_MAX_PART_SIZE" prefixed:"true" default:"20971520" min:"5242880" unit:"bytes" desc:"size of one part of a multipart upload"`
	UploadConcurrency       int      `envconfig:"UPLOAD_CONCURRENCY" alias:"WALE_UPLOAD_CONCURRENCY" default:"0" min:"0" desc:"parts of one object under way; 0 is WALG_UPLOAD_CONCURRENCY"`
	MaxRetries              int      `envconfig:"S3_MAX_RETRIES" prefixed:"true" default:"15" min:"0" desc:"tries of one request"`
	MinThrottlingRetryDelay int      `envconfig:"S3_MIN_THROTTLING_RETRY_DELAY" prefixed:"true" default:"500" min:"0" unit:"ms" desc:"shortest wait after a throttled request"`
	MaxThrottlingRetryDelay int      `envconfig:"S3_MAX_THROTTLING_RETRY_DELAY" prefixed:"true" default:"300000" min:"0" unit:"ms" desc:"longest wait after a throttled request"`
	RangeBatchEnabled       bool     `envconfig:"S3_RANGE_BATCH_ENABLED" prefixed:"true" default:"false" desc:"resume a broken download where it broke"`
	RangeMaxRetries         int      `envconfig:"S3_RANGE_MAX_RETRIES" prefixed:"true" default:"10" min:"0" desc:"resumptions of one download"`
	UseListObjectsV1        bool     `envconfig:"S3_USE_LIST_OBJECTS_V1" prefixed:"true" default:"false" desc:"list by the older call"`
	SkipValidation          bool     `envconfig:"S3_SKIP_VALIDATION" prefixed:"true" default:"true" desc:"do not try the bucket at start"`
	EnableVersioning        string   `envconfig:"S3_ENABLE_VERSIONING" prefixed:"true" enum:"enabled|disabled" desc:"whether the bucket keeps versions; asked if unset"`
	DeleteBatchSize         int      `envconfig:"S3_DELETE_BATCH_SIZE" prefixed:"true" default:"1000" min:"1" max:"1000" desc:"objects per delete request"`
	RetentionPeriod         int      `envconfig:"S3_RETENTION_PERIOD" prefixed:"true" default:"-1" min:"-1" unit:"s" desc:"object lock of new objects; -1 is none"`
	RetentionMode           string   `envconfig:"S3_RETENTION_MODE" prefixed:"true" default:"GOVERNANCE" enum:"GOVERNANCE|COMPLIANCE" desc:"mode of that lock"`
	AdditionalHeaders       string   `envconfig:"S3_REQUEST_ADDITIONAL_HEADERS" prefixed:"true" nested:"true" secret:"true" desc:"headers added to every request: a YAML map or list of maps"`
	UseYCSessionToken       string   `envconfig:"S3_USE_YC_SESSION_TOKEN" prefixed:"true" desc:"take the token from the metadata service of Yandex Cloud"`
	Disable100Continue      bool     `envconfig:"S3_DISABLE_100_CONTINUE" prefixed:"true" default:"false" desc:"do not ask before sending a body"`
	LogLevel                string   `envconfig:"S3_LOG_LEVEL" prefixed:"true" enum:"DEVEL" desc:"DEVEL logs every request"`
}

// Stores holds the settings of the remaining object stores.
type Stores struct {
	GSPrefix           string   `envconfig:"WALG_GS_PREFIX" alias:"WALE_GS_PREFIX" desc:"bucket and path, gs://bucket/path"`
	GoogleCredentials  string   `envconfig:"GOOGLE_APPLICATION_CREDENTIALS" desc:"credentials file"`
	GCSContextTimeout  int      `envconfig:"GCS_CONTEXT_TIMEOUT" prefixed:"true" default:"3600" min:"1" unit:"s" desc:"limit of one operation"`
	GCSNormalizePrefix bool     `envconfig:"GCS_NORMALIZE_PREFIX" prefixed:"true" default:"true" desc:"strip surplus slashes from the prefix"`
	GCSEncryptionKey   string   `envconfig:"GCS_ENCRYPTION_KEY" prefixed:"true" secret:"true" desc:"our own key for encryption on the server's side, 32 bytes in base64"`
	GCSMaxChunkSize    ByteSize `envconfig:"GCS_MAX_CHUNK_SIZE" prefixed:"true" default:"52428800" min:"1" unit:"bytes" desc:"size of one chunk of an upload"`
	GCSMaxRetries      int      `envconfig:"GCS_MAX_RETRIES" prefixed:"true" default:"16" min:"0" desc:"tries of one request"`

	GCSEmulatorHost string `envconfig:"STORAGE_EMULATOR_HOST" desc:"host:port of a Cloud Storage emulator, which asks for no credentials"`

	AZPrefix              string   `envconfig:"WALG_AZ_PREFIX" alias:"WALE_AZ_PREFIX" desc:"container and path, azure://container/path"`
	AzureAccount          string   `envconfig:"AZURE_STORAGE_ACCOUNT" prefixed:"true" desc:"storage account"`
	AzureAccessKey        string   `envconfig:"AZURE_STORAGE_ACCESS_KEY" prefixed:"true" secret:"true" desc:"key of the account"`
	AzureSASToken         string   `envconfig:"AZURE_STORAGE_SAS_TOKEN" prefixed:"true" secret:"true" desc:"shared access signature, if there is no key"`
	AzureEnvironmentName  string   `envconfig:"AZURE_ENVIRONMENT_NAME" prefixed:"true" default:"AzurePublicCloud" desc:"which Azure cloud"`
	AzureEndpointSuffix   string   `envconfig:"AZURE_ENDPOINT_SUFFIX" prefixed:"true" desc:"endpoint suffix; overrides the cloud's"`
	AzureEndpoint         string   `envconfig:"WALHERD_AZURE_ENDPOINT" desc:"URL of the account's blob service, for an emulator or a gateway"`
	AzureBufferSize       ByteSize `envconfig:"AZURE_BUFFER_SIZE" prefixed:"true" default:"8388608" min:"1024" unit:"bytes" desc:"size of one upload buffer"`
	AzureMaxBuffers       int      `envconfig:"AZURE_MAX_BUFFERS" prefixed:"true" default:"4" min:"1" desc:"upload buffers"`
	AzureTryTimeout       int      `envconfig:"AZURE_TRY_TIMEOUT" prefixed:"true" default:"5" min:"1" unit:"min" desc:"limit of one try"`
	AzureBlobStoreVersion string   `envconfig:"AZURE_BLOB_STORE_API_VERSION" prefixed:"true" desc:"version of the service's API"`

	SwiftPrefix     string `envconfig:"WALG_SWIFT_PREFIX" alias:"WALE_SWIFT_PREFIX" desc:"container and path, swift://container/path"`
	OSAuthURL       string `envconfig:"OS_AUTH_URL" prefixed:"true" desc:"address of Keystone"`
	OSUsername      string `envconfig:"OS_USERNAME" prefixed:"true" desc:"OpenStack user"`
	OSPassword      string `envconfig:"OS_PASSWORD" prefixed:"true" secret:"true" desc:"password of that user"`
	OSTenantName    string `envconfig:"OS_TENANT_NAME" prefixed:"true" desc:"OpenStack project"`
	OSRegionName    string `envconfig:"OS_REGION_NAME" prefixed:"true" desc:"OpenStack region"`
	OSProjectName   string `envconfig:"OS_PROJECT_NAME" prefixed:"true" desc:"OpenStack project, newer name"`
	OSUserDomain    string `envconfig:"OS_USER_DOMAIN_NAME" prefixed:"true" desc:"domain of the user"`
	OSProjectDomain string `envconfig:"OS_PROJECT_DOMAIN_NAME" prefixed:"true" desc:"domain of the project"`

	OSUserDomainID    string `envconfig:"OS_USER_DOMAIN_ID" prefixed:"true" desc:"domain of the user, by its number"`
	OSUserID          string `envconfig:"OS_USER_ID" prefixed:"true" desc:"OpenStack user, by its number"`
	OSAppCredID       string `envconfig:"OS_APPLICATION_CREDENTIAL_ID" prefixed:"true" desc:"application credential, in place of user and password"`
	OSAppCredName     string `envconfig:"OS_APPLICATION_CREDENTIAL_NAME" prefixed:"true" desc:"the same by its name"`
	OSAppCredSecret   string `envconfig:"OS_APPLICATION_CREDENTIAL_SECRET" prefixed:"true" secret:"true" desc:"secret of that credential"`
	OSTenantID        string `envconfig:"OS_TENANT_ID" prefixed:"true" desc:"OpenStack project, by its number"`
	OSProjectID       string `envconfig:"OS_PROJECT_ID" prefixed:"true" desc:"the same, newer name"`
	OSProjectDomainID string `envconfig:"OS_PROJECT_DOMAIN_ID" prefixed:"true" desc:"domain of the project, by its number"`
	OSEndpointType    string `envconfig:"OS_ENDPOINT_TYPE" prefixed:"true" desc:"public, internal or admin address of the service"`
	OSTrustID         string `envconfig:"OS_TRUST_ID" prefixed:"true" desc:"trust to act under"`
	OSStorageURL      string `envconfig:"OS_STORAGE_URL" prefixed:"true" desc:"address of the service, with OS_AUTH_TOKEN in place of Keystone"`
	OSAuthToken       string `envconfig:"OS_AUTH_TOKEN" prefixed:"true" secret:"true" desc:"token for that address"`
	OSCACert          string `envconfig:"OS_CACERT" prefixed:"true" desc:"file of certificate authorities"`
	OSIdentityVersion string `envconfig:"OS_IDENTITY_API_VERSION" prefixed:"true" desc:"version of the identity service, 1, 2 or 3, where its address does not tell"`
	STAuth            string `envconfig:"ST_AUTH" prefixed:"true" desc:"address of the older authentication"`
	STUser            string `envconfig:"ST_USER" prefixed:"true" desc:"user of the older authentication"`
	STKey             string `envconfig:"ST_KEY" prefixed:"true" secret:"true" desc:"key of the older authentication"`

	SSHPrefix         string `envconfig:"WALG_SSH_PREFIX" alias:"WALE_SSH_PREFIX" desc:"host and path, ssh://host/path"`
	SSHPort           int    `envconfig:"SSH_PORT" prefixed:"true" default:"22" min:"1" max:"65535" desc:"port of the SSH server"`
	SSHUsername       string `envconfig:"SSH_USERNAME" prefixed:"true" desc:"user to log in as"`
	SSHPassword       string `envconfig:"SSH_PASSWORD" prefixed:"true" secret:"true" desc:"password to log in with"`
	SSHPrivateKeyPath string `envconfig:"SSH_PRIVATE_KEY_PATH" prefixed:"true" desc:"file of a private key to log in with"`
	SSHPassphrase     string `envconfig:"SSH_PRIVATE_KEY_PASSPHRASE" prefixed:"true" secret:"true" desc:"passphrase of that key"`
	SSHKnownHosts     string `envconfig:"SSH_KNOWN_HOSTS" prefixed:"true" desc:"file of known servers; without it ~/.ssh/known_hosts"`
	SSHInsecure       bool   `envconfig:"SSH_INSECURE_HOST_KEY" prefixed:"true" default:"false" desc:"talk to a server that cannot prove who it is"`

	OSSPrefix          string   `envconfig:"WALG_OSS_PREFIX" alias:"WALE_OSS_PREFIX" later:"OSS" effect:"refuse" desc:"bucket and path, oss://bucket/path"`
	OSSAccessKeyID     string   `envconfig:"OSS_ACCESS_KEY_ID" prefixed:"true" secret:"true" later:"OSS" desc:"access key"`
	OSSAccessKeySecret string   `envconfig:"OSS_ACCESS_KEY_SECRET" prefixed:"true" secret:"true" later:"OSS" desc:"secret key"`
	OSSSessionToken    string   `envconfig:"OSS_SESSION_TOKEN" prefixed:"true" secret:"true" later:"OSS" desc:"token of temporary keys"`
	OSSRegion          string   `envconfig:"OSS_REGION" prefixed:"true" later:"OSS" desc:"region of the bucket"`
	OSSEndpoint        string   `envconfig:"OSS_ENDPOINT" prefixed:"true" later:"OSS" desc:"address of the service"`
	OSSRoleARN         string   `envconfig:"OSS_ROLE_ARN" prefixed:"true" later:"OSS" desc:"role to assume"`
	OSSRoleSessionName string   `envconfig:"OSS_ROLE_SESSION_NAME" prefixed:"true" later:"OSS" desc:"name of the assumed role's session"`
	OSSSkipValidation  bool     `envconfig:"OSS_SKIP_VALIDATION" prefixed:"true" default:"false" later:"OSS" desc:"do not try the bucket at start"`
	OSSMaxRetries      int      `envconfig:"OSS_MAX_RETRIES" prefixed:"true" default:"5" min:"0" later:"OSS" desc:"tries of one request"`
	OSSConnectTimeout  int      `envconfig:"OSS_CONNECT_TIMEOUT" prefixed:"true" default:"5" min:"1" unit:"s" later:"OSS" desc:"limit of connecting"`
	OSSUploadPartSize  ByteSize `envconfig:"OSS_UPLOAD_PART_SIZE" prefixed:"true" default:"6291456" min:"102400" unit:"bytes" later:"OSS" desc:"size of one part of a multipart upload"`
	OSSCopyPartSize    ByteSize `envconfig:"OSS_COPY_PART_SIZE" prefixed:"true" default:"67108864" min:"102400" unit:"bytes" later:"OSS" desc:"size of one part of a multipart copy"`
}

// Failover holds further storages and when to turn to them.
type Failover struct {
	Storages           StorageMap    `envconfig:"WALG_FAILOVER_STORAGES" nested:"true" secret:"true" desc:"storages to use when the main one is down: name to settings"`
	Check              string        `envconfig:"WALG_FAILOVER_STORAGES_CHECK" enum:"true|false" desc:"whether storages are tried before use; if unset, when there is more than one"`
	CheckTimeout       time.Duration `envconfig:"WALG_FAILOVER_STORAGES_CHECK_TIMEOUT" default:"30s" min:"0s" desc:"limit of that trial"`
	CheckSize          ByteSize      `envconfig:"WALG_FAILOVER_STORAGES_CHECK_SIZE" default:"1mb" min:"0" unit:"bytes" desc:"size of the object written on trial; 0 writes none"`
	CacheLifetime      time.Duration `envconfig:"WALG_FAILOVER_STORAGES_CACHE_LIFETIME" default:"15m" min:"0s" desc:"how long the outcome of a trial is believed"`
	CacheAliveLimit    float64       `envconfig:"WALG_FAILOVER_STORAGES_CACHE_EMA_ALIVE_LIMIT" default:"0.99" min:"0" max:"1" desc:"success rate from which a dead storage is alive again"`
	CacheDeadLimit     float64       `envconfig:"WALG_FAILOVER_STORAGES_CACHE_EMA_DEAD_LIMIT" default:"0.88" min:"0" max:"1" desc:"success rate below which a storage is dead"`
	CacheAlphaAliveMax float64       `envconfig:"WALG_FAILOVER_STORAGES_CACHE_EMA_ALPHA_ALIVE_MAX" default:"0.05" min:"0" max:"1" desc:"largest weight of one report on a living storage"`
	CacheAlphaAliveMin float64       `envconfig:"WALG_FAILOVER_STORAGES_CACHE_EMA_ALPHA_ALIVE_MIN" default:"0.01" min:"0" max:"1" desc:"smallest weight of one report on a living storage"`
	CacheAlphaDeadMax  float64       `envconfig:"WALG_FAILOVER_STORAGES_CACHE_EMA_ALPHA_DEAD_MAX" default:"0.5" min:"0" max:"1" desc:"largest weight of one report on a dead storage"`
	CacheAlphaDeadMin  float64       `envconfig:"WALG_FAILOVER_STORAGES_CACHE_EMA_ALPHA_DEAD_MIN" default:"0.1" min:"0" max:"1" desc:"smallest weight of one report on a dead storage"`
}

// Monitoring holds what is told about the process, and to whom.
type Monitoring struct {
	OTLPEndpoint       string  `envconfig:"OTEL_EXPORTER_OTLP_ENDPOINT" secret:"url" desc:"OpenTelemetry collector; without it nothing is traced"`
	OTLPTracesEndpoint string  `envconfig:"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" secret:"url" desc:"collector of traces alone, with its full path"`
	OTLPHeaders        string  `envconfig:"OTEL_EXPORTER_OTLP_HEADERS" secret:"true" desc:"headers sent to the collector, name=value separated by commas"`
	OTLPTracesHeaders  string  `envconfig:"OTEL_EXPORTER_OTLP_TRACES_HEADERS" secret:"true" desc:"the same for traces alone"`
	OTLPCertificate    string  `envconfig:"OTEL_EXPORTER_OTLP_CERTIFICATE" desc:"file of certificate authorities of the collector"`
	OTLPClientCert     string  `envconfig:"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE" desc:"client certificate file for the collector"`
	OTLPClientKey      string  `envconfig:"OTEL_EXPORTER_OTLP_CLIENT_KEY" secret:"true" desc:"client key file for the collector"`
	OTelServiceName    string  `envconfig:"OTEL_SERVICE_NAME" default:"walherd" desc:"name of this service in traces"`
	StatsdAddress      string  `envconfig:"WALG_STATSD_ADDRESS" desc:"host:port metrics are sent to when a command succeeds"`
	StatsdExtraTags    TagMap  `envconfig:"WALG_STATSD_EXTRA_TAGS" nested:"true" desc:"tags added to every metric"`
	ProfileRatio       float64 `envconfig:"PROFILE_SAMPLING_RATIO" default:"0" min:"0" max:"1" desc:"share of commands that are profiled"`
	ProfileMode        string  `envconfig:"PROFILE_MODE" default:"cpu" enum:"cpu|mem|mutex|block|threadcreation|trace|goroutine" desc:"what is profiled"`
	ProfilePath        string  `envconfig:"PROFILE_PATH" desc:"directory of profiles; a new temporary one if unset"`
	HTTPListen         string  `envconfig:"HTTP_LISTEN" desc:"address of the debug web server"`
	HTTPExposePprof    bool    `envconfig:"HTTP_EXPOSE_PPROF" default:"false" desc:"serve profiles there"`
	HTTPExposeExpvar   bool    `envconfig:"HTTP_EXPOSE_EXPVAR" default:"false" desc:"serve counters there"`
}
