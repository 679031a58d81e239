package client

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/walherd/walherd/producer/daemon/wire"
)

// ErrUsage marks a wrong command line; its text says what would be right.
var ErrUsage = errors.New("usage: SOCKET wal-push FILE | SOCKET wal-fetch NAME DESTINATION, then flags")

// Exit codes of the program, the reference's. PostgreSQL takes codes above 125
// for a reason to give up, so none is.
const (
	ExitOK     = 0
	ExitError  = 1
	ExitAbsent = 74 // EX_IOERR: the archive has no such file
)

// Main is the walg-daemon-client program: it does what args (without the
// program's name) say and returns the exit code. A file that is not in the
// archive is told on stdout, every other failure on stderr.
func Main(ctx context.Context, args []string, version string, stdout, stderr io.Writer) int {
	if len(args) == 1 && (args[0] == "--version" || args[0] == "-version") {
		fmt.Fprintln(stdout, version)
		return ExitOK
	}
	err := Run(ctx, args, stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return ExitOK
	case errors.Is(err, wire.ErrAbsent):
		fmt.Fprintln(stdout, err)
		return ExitAbsent
	}
	fmt.Fprintln(stderr, "ERROR:", err)
	return ExitError
}

// Run reads the command line SOCKET COMMAND ARGS [FLAGS] and carries it out.
// Help goes to the writer, and the error is flag.ErrHelp then; ErrUsage marks
// a wrong command line, wire.ErrAbsent a file that is not in the archive.
func Run(ctx context.Context, args []string, help io.Writer) error {
	var c Client
	fs := flag.NewFlagSet("walg-daemon-client", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // what is wrong is in the error
	fs.DurationVar(&c.Timeout, "timeout", DefaultTimeout, "limit of the whole `time`")
	fs.DurationVar(&c.ConnectTimeout, "connection-timeout", DefaultConnectTimeout, "how `long` to wait for a daemon that is not there")
	words, flags := split(args)
	switch err := fs.Parse(flags); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(help, ErrUsage)
		fs.SetOutput(help)
		fs.PrintDefaults()
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUsage, err)
	case fs.NArg() > 0:
		return fmt.Errorf("%w: %q after the flags", ErrUsage, fs.Arg(0))
	case c.Timeout <= 0 || c.ConnectTimeout <= 0:
		return fmt.Errorf("%w: a timeout is longer than nothing", ErrUsage)
	case len(words) < 2:
		return ErrUsage
	}
	c.Socket = words[0]
	command, rest := strings.ToLower(words[1]), words[2:]
	switch {
	case command == "wal-push" && len(rest) == 1:
		return c.Push(ctx, rest[0])
	case command == "wal-fetch" && len(rest) == 2:
		return c.Fetch(ctx, rest[0], rest[1])
	}
	return fmt.Errorf("%w: cannot do %q with %d arguments", ErrUsage, words[1], len(rest))
}

// split parts the words of a command line from the flags, which come last.
func split(args []string) (words, flags []string) {
	for i, a := range args {
		if strings.HasPrefix(a, "-") {
			return args[:i], args[i:]
		}
	}
	return args, nil
}
