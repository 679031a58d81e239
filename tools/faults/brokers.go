package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/walherd/walherd/tools/faults/link"
	"github.com/walherd/walherd/tools/faults/oracle"
)

// brokers is a JetStream cluster of separate processes, each route between two
// of them a link of its own.
type brokers struct {
	nodes []*node
	// routes[i][j] carries what node i sends to and hears from node j on
	// connections that i has opened.
	routes [][]*link.Link
	// hosts and workers are the ways of the database host and of the workers
	// to each node.
	hosts, workers []*link.Link
}

// node is one server.
type node struct {
	*proc
	n       int
	client  string // host:port
	route   string
	monitor string
	disk    *disk
}

// disk is where a node keeps its store.
type disk struct {
	dir     string // of the store
	backing string // what lossyfs shows, "" without it
	lossy   *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
}

const (
	brokerUser = "walherd"
	// brokerMemory bounds a server's address space: a damaged store can make
	// one take all there is.
	brokerMemory = 6 << 30
)

// freeAddrs finds n free ports below those that Linux takes for connections: a
// server is down for a while again and again, and another's connection must not
// have its port then.
func freeAddrs(ctx context.Context, n int) (out []string, err error) {
	const from, to = 10000, 32000
	// All are held until all are found: else the same comes twice.
	for range 50 * n {
		addr := fmt.Sprintf("127.0.0.1:%d", from+rand.IntN(to-from))
		l, lerr := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if lerr != nil {
			err = lerr
			continue
		}
		defer l.Close()
		if out = append(out, addr); len(out) == n {
			return out, nil
		}
	}
	return nil, fmt.Errorf("find %d free ports: %w", n, err)
}

// newBrokers starts n servers that keep their stores below dir.
func newBrokers(ctx context.Context, t *scope, n int, binary, lossyfs, dir string, diskBytes int64) (*brokers, error) {
	addrs, err := freeAddrs(ctx, 3*n)
	if err != nil {
		return nil, err
	}
	b := &brokers{}
	for i := range n {
		d, err := newDisk(t, lossyfs, filepath.Join(dir, fmt.Sprintf("disk%d", i)), diskBytes)
		if err != nil {
			return nil, fmt.Errorf("make the disk of broker %d: %w", i, err)
		}
		b.nodes = append(b.nodes, &node{n: i, client: addrs[3*i], route: addrs[3*i+1], monitor: addrs[3*i+2], disk: d})
	}
	for i, from := range b.nodes {
		var routes []*link.Link
		for j, to := range b.nodes {
			if i == j {
				routes = append(routes, nil)
				continue
			}
			l, err := t.link(ctx, to.route)
			if err != nil {
				return nil, err
			}
			routes = append(routes, l)
		}
		b.routes = append(b.routes, routes)
		for _, to := range []*[]*link.Link{&b.hosts, &b.workers} {
			l, err := t.link(ctx, from.client)
			if err != nil {
				return nil, err
			}
			*to = append(*to, l)
		}
	}
	for i, nd := range b.nodes {
		conf := filepath.Join(dir, fmt.Sprintf("nats%d.conf", i))
		if err := os.WriteFile(conf, []byte(b.config(i)), 0o644); err != nil {
			return nil, err
		}
		nd.proc = &proc{name: fmt.Sprintf("broker %d", i), log: filepath.Join(dir, fmt.Sprintf("nats%d.log", i)), make: func() *exec.Cmd {
			cmd := exec.Command(binary, "-c", conf)
			cmd.Env = append(os.Environ(), "GOMEMLIMIT=1GiB")
			return cmd
		}}
		t.defers(func() { _ = nd.kill() })
		if err := nd.begin(); err != nil {
			return nil, err
		}
	}
	return b, b.await(ctx, time.Minute, b.nodes...)
}

// begin starts the server under its memory limit.
func (nd *node) begin() error {
	if err := nd.start(); err != nil {
		return err
	}
	limit := unix.Rlimit{Cur: brokerMemory, Max: brokerMemory}
	if err := unix.Prlimit(nd.pid(), unix.RLIMIT_AS, &limit, nil); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("bound the memory of %s: %w", nd.name, err)
	}
	return nil
}

// config is what nats-server reads. Clients are not told of other servers, so
// that they stay on the links they were given.
func (b *brokers) config(i int) string {
	var routes []string
	for j, l := range b.routes[i] {
		if j != i {
			routes = append(routes, fmt.Sprintf("%q", "nats://"+l.Addr()))
		}
	}
	nd := b.nodes[i]
	return fmt.Sprintf(`server_name: n%d
listen: %q
http: %q
max_payload: 1MB
jetstream { store_dir: %q, max_memory_store: 1GB, max_file_store: 20GB, sync_interval: always }
cluster { name: faults, listen: %q, no_advertise: true, pool_size: -1, routes: [%s] }
accounts {
  SYS { users: [{user: sys, password: sys}], exports: [{service: "$SYS.REQ.SERVER.PING.JSZ", response: stream}] }
  W { jetstream: enabled, users: [{user: %s, password: %[7]s}], imports: [{service: {account: SYS, subject: "$SYS.REQ.SERVER.PING.JSZ"}}] }
}
system_account: SYS
`, i, nd.client, nd.monitor, nd.disk.dir, nd.route, strings.Join(routes, ", "), brokerUser)
}

// urls is WALHERD_NATS_URL over the given links.
func urls(links []*link.Link) string {
	var out []string
	for _, l := range links {
		out = append(out, fmt.Sprintf("nats://%s:%[1]s@%s", brokerUser, l.Addr()))
	}
	return strings.Join(out, ",")
}

func (b *brokers) monitors() []string {
	var out []string
	for _, nd := range b.nodes {
		out = append(out, nd.monitor)
	}
	return out
}

// await waits until the servers say that they are well.
func (b *brokers) await(ctx context.Context, limit time.Duration, nodes ...*node) error {
	deadline := time.Now().Add(limit)
	for _, nd := range nodes {
		for !oracle.Healthy(ctx, nd.monitor) {
			if err := sleep(ctx, 100*time.Millisecond); err != nil {
				return err
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s is not well after %s; it said last:\n%s", nd.name, limit, tail(nd.log))
			}
		}
	}
	return nil
}

// isolate spoils all routes between node i and the others.
func (b *brokers) isolate(i int, f link.Fault) {
	for j := range b.nodes {
		if j != i {
			b.routes[i][j].Set(f)
			b.routes[j][i].Set(f)
		}
	}
}

// newDisk makes a directory for a store: where that is possible, a file system
// in memory of a bounded size below one that can lose its power.
func newDisk(t *scope, lossyfs, dir string, size int64) (*disk, error) {
	d := &disk{dir: filepath.Join(dir, "store")}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return nil, err
	}
	if lossyfs == "" {
		return d, nil
	}
	d.backing = filepath.Join(dir, "backing")
	if err := os.MkdirAll(d.backing, 0o755); err != nil {
		return nil, err
	}
	if err := syscall.Mount("walherd-faults", d.backing, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		return nil, fmt.Errorf("mount a file system in memory: %w", err)
	}
	t.defers(func() { _ = syscall.Unmount(d.backing, syscall.MNT_DETACH) })
	d.lossy = exec.Command(lossyfs, "-backing", d.backing, "-mount", d.dir)
	d.lossy.Stderr = os.Stderr
	var err error
	if d.in, err = d.lossy.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := d.lossy.StdoutPipe()
	if err != nil {
		return nil, err
	}
	d.out = bufio.NewReader(out)
	if err := d.lossy.Start(); err != nil {
		return nil, err
	}
	t.defers(func() {
		// The end of its input makes it unmount; no signal does.
		_ = d.in.Close()
		_ = d.lossy.Wait()
	})
	_, err = d.out.ReadString('\n')
	return d, err
}

// cut takes the power away from a disk whose server is dead.
func (d *disk) cut() (string, error) {
	if _, err := io.WriteString(d.in, "cut\n"); err != nil {
		return "", err
	}
	line, err := d.out.ReadString('\n')
	return strings.TrimSpace(line), err
}

// fill takes what room is left; empty gives it back.
func (d *disk) fill() error {
	f, err := os.Create(filepath.Join(d.backing, "ballast"))
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 1<<20); ; {
		if _, err := f.Write(block); err != nil {
			if errors.Is(err, syscall.ENOSPC) {
				return nil
			}
			return err
		}
	}
}

func (d *disk) empty() error { return os.Remove(filepath.Join(d.backing, "ballast")) }

// wipe is a new disk.
func (d *disk) wipe() error {
	entries, err := os.ReadDir(d.dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(d.dir, e.Name())))
	}
	return err
}

// blocks are the files that hold the messages of a stream, with content.
func (d *disk) blocks(stream string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if info, err := e.Info(); err == nil && strings.HasSuffix(path, ".blk") && strings.Contains(path, "/"+stream+"/") && info.Size() > 64 {
			out = append(out, path)
		}
		return nil
	})
	slices.Sort(out)
	return out, err
}

// flip changes one bit of one of the store's files.
func (d *disk) flip(r *rand.Rand, stream string) (string, error) {
	files, err := d.blocks(stream)
	if err != nil || len(files) == 0 {
		return "there is no file to flip a bit of", err
	}
	path := files[r.IntN(len(files))]
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	at, one := r.Int64N(info.Size()), make([]byte, 1)
	if _, err := f.ReadAt(one, at); err != nil {
		return "", err
	}
	one[0] ^= 1 << r.IntN(8)
	if _, err := f.WriteAt(one, at); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, byte %d of %d", filepath.Base(path), at, info.Size()), f.Sync()
}

// truncate takes the last bytes of one of the store's files.
func (d *disk) truncate(r *rand.Rand, stream string) (string, error) {
	files, err := d.blocks(stream)
	if err != nil || len(files) == 0 {
		return "there is no file to truncate", err
	}
	path := files[len(files)-1]
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	size := info.Size() - min(1+r.Int64N(100<<10), info.Size()-1)
	return fmt.Sprintf("%s from %d to %d bytes", filepath.Base(path), info.Size(), size), os.Truncate(path, size)
}
