package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest/natstest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/producer/pgtest"
)

// natsFleet is the broker of deploy/nats: three nodes, TLS, an account for
// each of the clusters main and other, a user for each role.
type natsFleet struct {
	nats *natstest.Cluster
	// ca is a copy of the nodes' authority that the server's user can read.
	ca      string
	program string
	// nkey is the file with the seed of user other-producer; the others have
	// passwords.
	nkey string
}

var roles = []string{"producer", "agent", "worker", "operator"}

// password of a user; it begins with a letter, as the configuration asks.
func password(user string) string { return "secret-of-" + user }

func startNATS(t *testing.T) *natsFleet {
	t.Helper()
	f := &natsFleet{program: program(t)}
	dir := t.TempDir()
	public := f.makeNKey(t, dir)
	main := read(t, "../../deploy/nats/cluster-main.conf")
	// As its comments say, with an NKey for one user.
	other := strings.ReplaceAll(main, "main", "other")
	line := "user: other-producer, password: $other_producer_password"
	if !strings.Contains(other, line) {
		t.Fatalf("cluster-main.conf has no line %q", line)
	}
	other = strings.Replace(other, line, "nkey: "+public, 1)
	include := `include "cluster-main.conf"`
	conf := read(t, "../../deploy/nats/nats.conf")
	if !strings.Contains(conf, include) {
		t.Fatalf("nats.conf has no %s", include)
	}
	conf = strings.Replace(conf, include, include+"\n  include \"cluster-other.conf\"", 1)
	for name, text := range map[string]string{"nats.conf": conf, "cluster-main.conf": main, "cluster-other.conf": other} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"NODE_STORE_KEY=a-key-of-the-store", "SYS_PASSWORD=" + password("sys")}
	for _, c := range []string{"main", "other"} {
		for _, r := range roles {
			env = append(env, fmt.Sprintf("%s_%s_password=%s", c, r, password(c+"-"+r)))
		}
	}
	began := time.Now()
	f.nats = natstest.Start(t, natstest.Options{Nodes: 3, Config: filepath.Join(dir, "nats.conf"), Env: env})
	t.Logf("three nodes were ready after %s", time.Since(began).Round(time.Millisecond))
	f.ca = filepath.Join(pgtest.TempDir(t), "ca.pem")
	if err := os.WriteFile(f.ca, []byte(read(t, f.nats.CA)), 0o644); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *natsFleet) makeNKey(t *testing.T, dir string) (public string) {
	t.Helper()
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	f.nkey = filepath.Join(dir, "producer.nk")
	if err := os.WriteFile(f.nkey, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	if public, err = key.PublicKey(); err != nil {
		t.Fatal(err)
	}
	return public
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// as is the environment of a process that is one role of a cluster.
func (f *natsFleet) as(cluster, role string) []string {
	user := cluster + "-" + role
	env := []string{
		"WALHERD_CLUSTER=" + cluster, "WALHERD_NATS_URL=" + f.nats.URL(), "WALHERD_NATS_CA=" + f.ca,
		"WALHERD_REPLICAS=3", "WALHERD_ACK_WAIT=5s",
	}
	if user == "other-producer" {
		return append(env, "WALHERD_NATS_NKEY="+f.nkey)
	}
	return append(env, "WALHERD_NATS_USER="+user, "WALHERD_NATS_PASSWORD="+password(user))
}

// options are as for a connection of a test; inbox is the role whose inbox it
// claims.
func (f *natsFleet) options(cluster, role, inbox string) bus.Options {
	user := cluster + "-" + role
	o := bus.Options{
		URL: f.nats.URL(), TLS: bus.TLSFiles{CA: f.nats.CA}, Inbox: fmt.Sprintf("_INBOX.%s.%s", inbox, cluster),
		Login: bus.Login{User: user, Password: password(user)},
	}
	if user == "other-producer" {
		o.Login = bus.Login{NKeyFile: f.nkey}
	}
	return o
}

func (f *natsFleet) connect(t *testing.T, cluster, role string) *bus.Bus {
	t.Helper()
	inbox := role
	if role == "agent" {
		inbox = "producer" // an agent is one that answers
	}
	b, err := bus.Connect(t.Context(), f.options(cluster, role, inbox))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// run runs walherd, which needs no database here.
func (f *natsFleet) run(t *testing.T, env []string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), f.program, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run walherd %v: %v", args, err)
	}
	return result{code: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
}

// TestFleetOnACluster: the deployed configuration lets every role do its work,
// and nothing else, and a node that is killed loses nothing. One broker serves
// all of it.
func TestFleetOnACluster(t *testing.T) {
	t.Parallel()
	f := startNATS(t)
	f.setup(t)
	b := newBench(t, f.as("main", "producer"))
	hosts := *b
	hosts.env = f.as("main", "worker")
	_, workerLog := (&fleet{bench: &hosts}).worker("main")

	t.Run("Roles", func(t *testing.T) {
		t.Run("Refusals", func(t *testing.T) { t.Parallel(); f.refusals(t) })
		t.Run("RawRefusals", func(t *testing.T) { t.Parallel(); f.rawRefusals(t) })
		t.Run("WrongRole", func(t *testing.T) { t.Parallel(); f.wrongRole(t) })
		t.Run("Login", func(t *testing.T) { t.Parallel(); f.login(t) })
		t.Run("Plaintext", func(t *testing.T) { t.Parallel(); f.plaintext(t) })
		t.Run("Backup", func(t *testing.T) { t.Parallel(); f.backup(t, b) })
		t.Run("Queued", func(t *testing.T) { t.Parallel(); f.queued(t, b) })
		t.Run("Tenants", func(t *testing.T) { t.Parallel(); f.tenants(t) })
	})
	t.Run("Operates", func(t *testing.T) { f.operates(t, b) })
	t.Run("LeaderKilled", func(t *testing.T) { f.leaderKilled(t, b) })
	if log := workerLog.String(); strings.Contains(log, bus.ErrDenied.Error()) || strings.Contains(log, "ermissions") {
		t.Errorf("the worker was refused something:\n%s", log)
	}
}

// setup makes the streams as the operator, with the sizes that are the
// default, and looks at what is said of what differs.
func (f *natsFleet) setup(t *testing.T) {
	t.Helper()
	if r := f.run(t, f.as("main", "operator"), "queue", "setup"); r.code != 0 {
		t.Fatalf("queue setup: %+v", r)
	}
	small := append(f.as("other", "operator"), "WALHERD_QUEUE_WAL_BYTES=16mb", "WALHERD_QUEUE_CHUNK_BYTES=64mb")
	if r := f.run(t, small, "queue", "setup"); r.code != 0 {
		t.Fatalf("queue setup of another cluster: %+v", r)
	}
	b := f.connect(t, "main", "operator")
	for _, s := range (topology.Config{Replicas: 3}).Streams() {
		got, err := b.StreamState(t.Context(), s.Name)
		if err != nil || got.Replicas != s.Replicas {
			t.Errorf("stream %s: %+v, %v; want %d replicas", s.Name, got, err, s.Replicas)
		}
	}
	r := f.run(t, append(f.as("main", "operator"), "WALHERD_REPLICAS=1"), "queue", "setup")
	if r.code != 0 || !strings.Contains(r.stderr, "stream WALHERD_WAL: replicas is 3, declared 1") {
		t.Errorf("queue setup with other settings: %+v", r)
	}
}

// backup takes a base backup as an agent, shows it to a host without storage,
// and looks at the queue as the operator.
func (f *natsFleet) backup(t *testing.T, b *bench) {
	host := fleet{bench: b}
	push, out := host.producer(t.Context(), f.as("main", "agent"), "backup-push", b.c.DataDir())
	if err := push.Run(); err != nil {
		t.Fatalf("backup-push: %v\n%s", err, out)
	}
	if strings.Contains(out.String(), bus.ErrDenied.Error()) {
		t.Errorf("the agent was refused something:\n%s", out)
	}
	// A producer is not let to take the lease, and says so.
	push, out = host.producer(t.Context(), f.as("main", "producer"), "backup-push", b.c.DataDir())
	if err := push.Run(); err != nil {
		t.Fatalf("backup-push: %v\n%s", err, out)
	}
	if !strings.Contains(out.String(), "does not let this host take the lease") {
		t.Errorf("a producer took the lease of backups:\n%s", out)
	}
	r := f.run(t, f.as("main", "producer"), "backup-list", "--json")
	var list []struct {
		Name string `json:"backup_name"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil || len(list) != 2 {
		t.Errorf("backup-list over the queue: %+v, %v", r, err)
	}
	r = f.run(t, f.as("main", "operator"), "status", "--json")
	var s struct {
		Workers    []any `json:"workers"`
		LastBackup any   `json:"last_backup"`
		Streams    []struct {
			Name    string `json:"name"`
			Current int    `json:"current_replicas"`
		} `json:"streams"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil || len(s.Workers) != 1 || s.LastBackup == nil {
		t.Errorf("status: %+v, %v", r, err)
	}
	for _, st := range s.Streams {
		if st.Name == topology.StreamWAL && st.Current != 3 {
			t.Errorf("%d replicas of %s are up to date", st.Current, st.Name)
		}
	}
}

// queued archives with the queue's word: the producer has to have it proven
// that the nodes sync, and to hear what the worker stored.
func (f *natsFleet) queued(t *testing.T, b *bench) {
	host := fleet{bench: b}
	spool := filepath.Join(pgtest.TempDir(t), "spool")
	env := append(f.as("main", "producer"), "WALHERD_WAL_ACK=queued", "WALHERD_SPOOL_DIR="+spool)
	segment := segmentFile(t, b)
	push, out := host.producer(t.Context(), env, "wal-push", segment)
	if err := push.Run(); err != nil || !strings.Contains(out.String(), "queued: ") {
		t.Fatalf("wal-push: %v\n%s", err, out)
	}
	await(t, "the segment to be stored", func() bool {
		return strings.Contains(strings.Join(b.objects(), " "), filepath.Base(segment))
	})
	copies := func() []string {
		found, err := filepath.Glob(filepath.Join(spool, "*", filepath.Base(segment)+"*"))
		if err != nil {
			t.Fatal(err)
		}
		more, _ := filepath.Glob(filepath.Join(spool, filepath.Base(segment)+"*"))
		return append(found, more...)
	}
	if len(copies()) == 0 {
		t.Fatal("there is no copy in the spool")
	}
	// The next ask hears of it, and drops the copy.
	await(t, "the copy to be dropped", func() bool {
		next := segmentFile(t, b)
		push, out := host.producer(t.Context(), env, "wal-push", next)
		if err := push.Run(); err != nil {
			t.Fatalf("wal-push: %v\n%s", err, out)
		}
		if strings.Contains(out.String(), bus.ErrDenied.Error()) {
			t.Fatalf("the producer was refused something:\n%s", out)
		}
		return len(copies()) == 0
	})
}

// tenants: what goes on in one account is not seen from another, whose user
// has an NKey.
func (f *natsFleet) tenants(t *testing.T) {
	r := f.run(t, f.as("other", "operator"), "status", "--json")
	var s struct {
		Workers []any `json:"workers"`
		Streams []struct {
			Name     string `json:"name"`
			Messages int    `json:"messages"`
		} `json:"streams"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil || len(s.Workers) != 0 || len(s.Streams) != 5 {
		t.Fatalf("status of the other cluster: %+v, %v", r, err)
	}
	for _, st := range s.Streams {
		if st.Messages != 0 {
			t.Errorf("the other cluster's %s holds %d messages", st.Name, st.Messages)
		}
	}
	b := f.connect(t, "other", "producer")
	if _, ok, err := b.Durability(t.Context(), topology.StreamWAL); err != nil || !ok {
		t.Errorf("the other cluster's producer: %v, %v", ok, err)
	}
	if _, err := b.Request(t.Context(), messages.APISubject("other", "run"), nil); !errors.Is(err, bus.ErrNobody) {
		t.Errorf("who answers the other cluster, which has no worker? %v", err)
	}
}

// leaderKilled ends the node that leads the stream of WAL, archives until that
// works again, and brings the node back.
func (f *natsFleet) leaderKilled(t *testing.T, b *bench) {
	operator := f.connect(t, "main", "operator")
	s, err := operator.StreamState(t.Context(), topology.StreamWAL)
	if err != nil {
		t.Fatal(err)
	}
	leader := f.nats.Node(s.Leader)
	if leader == nil {
		t.Fatalf("no node is called %q", s.Leader)
	}
	segment := segmentFile(t, b)
	leader.Kill()
	var said string
	await(t, "the segment to be archived", func() bool { // as PostgreSQL asks again
		push, out := (&fleet{bench: b}).producer(t.Context(), f.as("main", "producer"), "wal-push", segment)
		err := push.Run()
		said = out.String()
		return err == nil
	})
	// Two of three nodes are enough for the queue's word as well.
	queued := append(f.as("main", "producer"), "WALHERD_WAL_ACK=queued", "WALHERD_SPOOL_DIR="+filepath.Join(pgtest.TempDir(t), "spool"))
	next := segmentFile(t, b)
	await(t, "a segment to be queued", func() bool {
		push, out := (&fleet{bench: b}).producer(t.Context(), queued, "wal-push", next)
		err := push.Run()
		said = out.String()
		return err == nil && strings.Contains(said, "queued: ")
	})
	object := filepath.Base(segment) + ".lz4"
	if !strings.Contains(strings.Join(b.objects(), " "), object) {
		t.Errorf("there is no %s in the storage, and wal-push said\n%s", object, said)
	}
	if err := leader.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "the node to catch up", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		s, err := operator.StreamState(ctx, topology.StreamWAL)
		return err == nil && s.Current == 3
	})
	fetched := filepath.Join(pgtest.TempDir(t), "fetched")
	b.must("wal-fetch", filepath.Base(segment), fetched)
	if !bytes.Equal([]byte(read(t, fetched)), []byte(read(t, segment))) {
		t.Error("another segment came back")
	}
}

// login: who is not let in is told why, and what to look at.
func (f *natsFleet) login(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*bus.Options)
		is     error
		says   string
	}{
		"WrongPassword": {func(o *bus.Options) { o.Login.Password = "no" }, bus.ErrDenied, "WALHERD_NATS_PASSWORD"},
		"WrongUser":     {func(o *bus.Options) { o.Login.User = "main" }, bus.ErrDenied, "WALHERD_NATS_USER"},
		"Nobody":        {func(o *bus.Options) { o.Login = bus.Login{} }, bus.ErrDenied, "WALHERD_NATS_USER"},
		"OtherNKey":     {func(o *bus.Options) { o.Login = bus.Login{NKeyFile: strangerNKey(t)} }, bus.ErrDenied, "WALHERD_NATS_NKEY"},
		"NoCredentials": {func(o *bus.Options) { o.Login = bus.Login{CredsFile: "/nonexistent/user.creds"} }, os.ErrNotExist, "WALHERD_NATS_CREDS"},
		"WrongCA":       {func(o *bus.Options) { o.TLS.CA = f.nats.RouteCA }, bus.ErrUnavailable, "WALHERD_NATS_CA"},
		"NoCA":          {func(o *bus.Options) { o.TLS = bus.TLSFiles{} }, bus.ErrUnavailable, "WALHERD_NATS_CA"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := f.options("main", "producer", "producer")
			c.change(&o)
			b, err := bus.Connect(t.Context(), o)
			if err == nil {
				b.Close()
				t.Fatal("let in")
			}
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v; want %v that names %s", err, c.is, c.says)
			}
			if strings.Contains(err.Error(), password("main-producer")) {
				t.Errorf("the password is in the error: %v", err)
			}
		})
	}
}

func strangerNKey(t *testing.T) string {
	t.Helper()
	f := &natsFleet{}
	f.makeNKey(t, t.TempDir())
	return f.nkey
}

// plaintext: a client that does not turn to TLS is not served, whatever it
// knows.
func (f *natsFleet) plaintext(t *testing.T) {
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", f.nats.Nodes[0].Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	info, err := r.ReadString('\n')
	if err != nil || !strings.Contains(info, `"tls_required":true`) {
		t.Fatalf("greeting: %q, %v", info, err)
	}
	fmt.Fprintf(conn, "CONNECT {\"user\":\"main-producer\",\"pass\":%q}\r\nPING\r\n", password("main-producer"))
	for {
		line, err := r.ReadString('\n')
		if strings.HasPrefix(line, "PONG") || strings.HasPrefix(line, "+OK") {
			t.Fatalf("served in plaintext: %q", line)
		}
		if err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				t.Fatal("the connection was left open")
			}
			return
		}
	}
}

// TestExpiredCredentials: a user whose time is over is told so, and one whose
// file is replaced before is let in.
func TestExpiredCredentials(t *testing.T) {
	t.Parallel()
	operator, operatorPublic := makeKey(t, nkeys.CreateOperator)
	account, accountPublic := makeKey(t, nkeys.CreateAccount)
	claims := jwt.NewAccountClaims(accountPublic)
	accountJWT, err := claims.Encode(operator)
	if err != nil {
		t.Fatal(err)
	}
	operatorJWT, err := jwt.NewOperatorClaims(operatorPublic).Encode(operator)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "nats.conf")
	text := fmt.Sprintf("server_name: $NODE_NAME\nlisten: $NODE_LISTEN\nhttp: $NODE_MONITOR\noperator: %s\nresolver: MEMORY\nresolver_preload: { %s: %s }\ntls { cert_file: $NODE_CERT, key_file: $NODE_CERT_KEY }\n",
		operatorJWT, accountPublic, accountJWT)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	n := natstest.Start(t, natstest.Options{Config: conf})
	creds := func(expires time.Duration) string {
		user, public := makeKey(t, nkeys.CreateUser)
		claims := jwt.NewUserClaims(public)
		claims.Expires = time.Now().Add(expires).Unix()
		token, err := claims.Encode(account)
		if err != nil {
			t.Fatal(err)
		}
		seed, err := user.Seed()
		if err != nil {
			t.Fatal(err)
		}
		data, err := jwt.FormatUserConfig(token, seed)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "user.creds")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	o := bus.Options{URL: n.URL(), TLS: bus.TLSFiles{CA: n.CA}, Login: bus.Login{CredsFile: creds(-time.Minute)}}
	_, err = bus.Connect(t.Context(), o)
	if !errors.Is(err, bus.ErrDenied) || !strings.Contains(err.Error(), "WALHERD_NATS_CREDS") {
		t.Errorf("expired credentials: %v", err)
	}

	// They expire while connected, and are replaced.
	o.Login.CredsFile = creds(3 * time.Second)
	b, err := bus.Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	ask := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := b.Request(ctx, "anybody", nil)
		return err
	}
	await(t, "the credentials to expire", func() bool { return !errors.Is(ask(), bus.ErrNobody) })
	fresh, err := os.ReadFile(creds(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(o.Login.CredsFile, fresh, 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, "the new credentials to be used", func() bool { return errors.Is(ask(), bus.ErrNobody) })
}

func makeKey(t *testing.T, create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
	t.Helper()
	key, err := create()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return key, public
}
