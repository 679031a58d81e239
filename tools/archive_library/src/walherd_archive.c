/*
 * walherd_archive: an archive module (archive_library) for PostgreSQL 15 and
 * later that hands each WAL file to walherd's daemon over its unix socket.
 *
 *	archive_mode = on
 *	archive_library = 'walherd_archive'
 *	walherd_archive.socket = '/run/walherd/main.sock'
 *
 * The archiver sends the file's bare name and waits for one byte: the daemon
 * reads the file from pg_wal itself, so it has to serve this very cluster.
 *
 * A file is reported as archived only if the daemon answered 'O'. Everything
 * else (no daemon, a refusal, a broken connection, silence for longer than
 * walherd_archive.timeout) is a WARNING and "not archived": PostgreSQL keeps
 * the file and asks again. Each file has a connection of its own, so nothing
 * is remembered of a daemon that has been restarted.
 *
 * The protocol is WAL-G's: 'F', two bytes of length (big endian, of the whole
 * frame), the name.
 */
#include "postgres.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#if PG_VERSION_NUM < 150000
#error "archive modules need PostgreSQL 15 or later: use archive_command with walg-daemon-client"
#elif PG_VERSION_NUM < 160000
#include "postmaster/pgarch.h"
#else
#include "archive/archive_module.h"
#endif
#include "fmgr.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

PG_MODULE_MAGIC;

/* A name has at most 40 characters (MAX_XFN_CHARS). */
#define HEADER_SIZE 3
#define MAX_FRAME 256

#define REPLY_DONE 'O'
#define REPLY_FAILED 'E'

/* How long to wait before asking a daemon again whose queue is full, in ms. */
#define BUSY_PAUSE 20

static char *socket_path = NULL;
static int	timeout_s = 90;

/* One file's exchange with the daemon. */
typedef struct Exchange
{
	int			fd;				/* -1: none */
	TimestampTz deadline;
	bool		woken;			/* the latch was reset here */
	char		why[256];		/* the reason of a failure; not palloc'd, for
								 * nobody resets the archiver's context on 15 */
} Exchange;

PGDLLEXPORT void _PG_init(void);

static bool
fail(Exchange *x, const char *fmt,...) pg_attribute_printf(2, 3);

static bool
fail(Exchange *x, const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	vsnprintf(x->why, sizeof(x->why), fmt, args);
	va_end(args);
	return false;
}

/*
 * Wait for the socket, or for pause ms without one, no longer than the
 * deadline. False is a failure with its reason. True may be early.
 */
static bool
await(Exchange *x, int event, long pause)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), x->deadline);
	int			events = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | event;
	int			got;

	if (left <= 0)
		return fail(x, "no answer within %d s (walherd_archive.timeout)", timeout_s);
	if (event == 0)
		left = Min(left, pause);
	got = WaitLatchOrSocket(MyLatch, events, event == 0 ? PGINVALID_SOCKET : x->fd,
							left, PG_WAIT_EXTENSION);
	if (got & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		x->woken = true;
	}
	CHECK_FOR_INTERRUPTS();
	/* The archiver ends without waiting for a daemon that hangs. */
	if (ShutdownRequestPending)
		return fail(x, "the archiver was told to end");
	return true;
}

static bool
connect_daemon(Exchange *x)
{
	struct sockaddr_un addr;

	memset(&addr, 0, sizeof(addr));
	addr.sun_family = AF_UNIX;
	/* check_socket has seen to it that it fits. */
	memcpy(addr.sun_path, socket_path, Min(strlen(socket_path), sizeof(addr.sun_path) - 1));
	x->fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (x->fd < 0)
		return fail(x, "make a socket: %m");
	if (!pg_set_noblock(x->fd))
		return fail(x, "set a socket non-blocking: %m");
	while (connect(x->fd, (struct sockaddr *) &addr, sizeof(addr)) < 0)
	{
		if (errno == EISCONN || errno == EINPROGRESS)
			break;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return fail(x, "connect: %m");
		/* The daemon's queue of connections is full. */
		if (!await(x, 0, BUSY_PAUSE))
			return false;
	}
	return true;
}

static bool
send_frame(Exchange *x, const char *file)
{
	char		frame[MAX_FRAME];
	size_t		size = HEADER_SIZE + strlen(file);
	size_t		sent = 0;

	if (size > sizeof(frame))
		return fail(x, "the file's name is too long");
	frame[0] = 'F';
	frame[1] = (char) (size >> 8);
	frame[2] = (char) (size & 0xff);
	memcpy(frame + HEADER_SIZE, file, size - HEADER_SIZE);
	while (sent < size)
	{
		ssize_t		n = send(x->fd, frame + sent, size - sent, MSG_NOSIGNAL);

		if (n >= 0)
			sent += n;
		else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
		{
			if (!await(x, WL_SOCKET_WRITEABLE, 0))
				return false;
		}
		else
			return fail(x, "send the request: %m");
	}
	return true;
}

static bool
read_reply(Exchange *x)
{
	for (;;)
	{
		unsigned char reply;
		ssize_t		n = recv(x->fd, &reply, 1, 0);

		if (n == 0)
			return fail(x, "the daemon closed the connection without an answer");
		if (n == 1 && reply == REPLY_DONE)
			return true;
		if (n == 1 && reply == REPLY_FAILED)
			return fail(x, "the daemon could not; its log says why");
		if (n == 1)
			return fail(x, "the answer 0x%02x is none of a daemon's", reply);
		if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
			return fail(x, "read the answer: %m");
		if (!await(x, WL_SOCKET_READABLE, 0))
			return false;
	}
}

static bool
push(const char *file)
{
	Exchange	x;
	volatile bool done = false;

	x.fd = -1;
	x.woken = false;
	x.why[0] = '\0';
	x.deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_s * INT64CONST(1000));
	PG_TRY();
	{
		done = connect_daemon(&x) && send_frame(&x, file) && read_reply(&x);
	}
	PG_FINALLY();
	{
		if (x.fd >= 0)
			close(x.fd);

		/*
		 * Whoever set the latch meant the archiver's own loop. Kept from it,
		 * the request for its last cycle would make a shutdown wait for up to
		 * a minute.
		 */
		if (x.woken)
			SetLatch(MyLatch);
	}
	PG_END_TRY();
	if (!done)
		ereport(WARNING,
				(errmsg("could not archive \"%s\" through the daemon at \"%s\": %s",
						file, socket_path, x.why)));
	else
		ereport(DEBUG1, (errmsg_internal("archived \"%s\" through \"%s\"", file, socket_path)));
	return done;
}

/*
 * Whether a daemon answers is not asked here: one that is restarted is a
 * reason to retry, not a wrong configuration.
 */
static bool
is_configured(void)
{
	if (socket_path != NULL && socket_path[0] != '\0')
		return true;
#if PG_VERSION_NUM >= 170000
	arch_module_check_errdetail("\"walherd_archive.socket\" is not set.");
#else
	ereport(WARNING, (errmsg("\"walherd_archive.socket\" is not set")));
#endif
	return false;
}

static bool
check_socket(char **newval, void **extra, GucSource source)
{
	struct sockaddr_un addr;

	if (*newval == NULL || **newval == '\0')
		return true;
	if (!is_absolute_path(*newval))
	{
		GUC_check_errdetail("The daemon's socket is given by an absolute path.");
		return false;
	}
	if (strlen(*newval) >= sizeof(addr.sun_path))
	{
		GUC_check_errdetail("The path of a socket has at most %d bytes.", (int) sizeof(addr.sun_path) - 1);
		return false;
	}
	return true;
}

#if PG_VERSION_NUM >= 160000

static bool
check_configured_cb(ArchiveModuleState *state)
{
	return is_configured();
}

static bool
archive_file_cb(ArchiveModuleState *state, const char *file, const char *path)
{
	return push(file);
}

static const ArchiveModuleCallbacks callbacks = {
	.check_configured_cb = check_configured_cb,
	.archive_file_cb = archive_file_cb,
};

const ArchiveModuleCallbacks *
_PG_archive_module_init(void)
{
	return &callbacks;
}

#else

static bool
archive_file_cb(const char *file, const char *path)
{
	return push(file);
}

PGDLLEXPORT void _PG_archive_module_init(ArchiveModuleCallbacks *cb);

void
_PG_archive_module_init(ArchiveModuleCallbacks *cb)
{
	cb->check_configured_cb = is_configured;
	cb->archive_file_cb = archive_file_cb;
}

#endif

void
_PG_init(void)
{
	DefineCustomStringVariable("walherd_archive.socket",
							   "Path of the daemon's unix socket.",
							   "The daemon serves this cluster's data directory.",
							   &socket_path,
							   "",
							   PGC_SIGHUP,
							   0,
							   check_socket, NULL, NULL);
	DefineCustomIntVariable("walherd_archive.timeout",
							"How long to wait for a file to be archived.",
							"Longer than the daemon's own limit (WALG_DAEMON_WAL_UPLOAD_TIMEOUT), so that it can say why.",
							&timeout_s,
							90, 1, 86400,
							PGC_SIGHUP,
							GUC_UNIT_S,
							NULL, NULL, NULL);
	MarkGUCPrefixReserved("walherd_archive");
}
