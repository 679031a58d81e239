//go:build unix

// Package natstest runs real nats-server processes for tests and fault suites:
// one node or three, with the configuration that is deployed, certificates made
// for the occasion, and ports of the loopback address. Nodes can be killed,
// stopped, frozen and started again. Where the system can, they die with the
// process that started them.
//
// The server is the version that go.mod names. It is built once into the user's
// cache directory; WALHERD_NATS_SERVER names a binary to use instead.
//
// It fails with an error that says what is missing or what a node said last,
// never by skipping.
package natstest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Options of Run and Start.
type Options struct {
	// Nodes is 1 or 3. 0 is 1.
	Nodes int
	// Config is the path of a file that reads, as deploy/nats/nats.conf does,
	// NODE_NAME, NODE_LISTEN, NODE_MONITOR, NODE_STORE_DIR, NODE_CERT and
	// NODE_CERT_KEY from the environment, and in a cluster NODE_ROUTE_LISTEN,
	// NODE_ROUTES, ROUTE_CERT, ROUTE_CERT_KEY and ROUTE_CA.
	Config string
	// Env is what else it reads (KEY=value): passwords, the store's key.
	Env []string
}

// Cluster is a broker of one node or more.
type Cluster struct {
	Nodes []*Node
	// CA is the file that proves the nodes to clients. RouteCA proves nodes to
	// each other; to a client it is a wrong one.
	CA, RouteCA string
}

// Start runs a broker that ends with the test, and logs what its nodes said if
// the test fails.
func Start(tb testing.TB, opt Options) *Cluster {
	tb.Helper()
	c, err := Run(tb.Context(), tb.TempDir(), opt)
	if err != nil {
		tb.Fatalf("start a broker: %v", err)
	}
	tb.Cleanup(func() {
		c.Close()
		if !tb.Failed() {
			return
		}
		for _, n := range c.Nodes {
			tb.Logf("%s said last:\n%s", n.Name, n.tail(4<<10))
		}
	})
	return c
}

// Run starts a broker that keeps all it has below dir, building the server
// first if need be. It returns when every node is ready. The caller closes
// it. ctx covers the start only.
func Run(ctx context.Context, dir string, opt Options) (*Cluster, error) {
	if opt.Nodes == 0 {
		opt.Nodes = 1
	}
	config, err := filepath.Abs(opt.Config)
	if err != nil {
		return nil, fmt.Errorf("find the broker's configuration: %w", err)
	}
	binary, err := Build(ctx)
	if err != nil {
		return nil, err
	}
	certs, err := makeCertificates(dir)
	if err != nil {
		return nil, fmt.Errorf("make the broker's certificates: %w", err)
	}
	// A port is free when it is chosen, and may be taken when a node comes to it.
	for try := 1; ; try++ {
		c := &Cluster{CA: certs.ca, RouteCA: certs.routeCA}
		if err := c.plan(ctx, dir, binary, config, certs, opt); err != nil {
			return nil, err
		}
		err := c.start(ctx)
		if err == nil {
			return c, nil
		}
		c.Close()
		if try == 5 || ctx.Err() != nil || !strings.Contains(err.Error(), "address already in use") {
			return nil, err
		}
	}
}

// plan gives every node its addresses and environment.
func (c *Cluster) plan(ctx context.Context, dir, binary, config string, certs certificates, opt Options) error {
	addrs, err := freeAddrs(ctx, 3*opt.Nodes)
	if err != nil {
		return err
	}
	var routes []string
	for i := range opt.Nodes {
		routes = append(routes, "tls://"+addrs[3*i+1])
	}
	for i := range opt.Nodes {
		name := fmt.Sprintf("nats-%d", i+1)
		n := &Node{
			Name: name, Addr: addrs[3*i], StoreDir: filepath.Join(dir, name), LogFile: filepath.Join(dir, name+".log"),
			monitor: addrs[3*i+2], size: opt.Nodes, binary: binary, args: []string{"--config", config},
		}
		n.env = append(append(os.Environ(), opt.Env...),
			"NODE_NAME="+name, "NODE_LISTEN="+n.Addr, "NODE_MONITOR="+n.monitor, "NODE_STORE_DIR="+n.StoreDir,
			"NODE_ROUTE_LISTEN="+addrs[3*i+1], "NODE_ROUTES=["+strings.Join(routes, ",")+"]",
			"NODE_CERT="+certs.node, "NODE_CERT_KEY="+certs.nodeKey,
			"ROUTE_CERT="+certs.route, "ROUTE_CERT_KEY="+certs.routeKey, "ROUTE_CA="+certs.routeCA,
		)
		c.Nodes = append(c.Nodes, n)
	}
	return nil
}

// start starts all before it waits for any: a node is not ready without a
// majority.
func (c *Cluster) start(ctx context.Context) error {
	for _, n := range c.Nodes {
		if err := n.launch(); err != nil {
			return err
		}
	}
	return c.Ready(ctx)
}

// Ready waits until every node takes part in the cluster, knows its leader and
// serves JetStream.
func (c *Cluster) Ready(ctx context.Context) error {
	for _, n := range c.Nodes {
		if err := n.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// URL names all nodes, for WALHERD_NATS_URL.
func (c *Cluster) URL() string {
	var urls []string
	for _, n := range c.Nodes {
		urls = append(urls, n.URL())
	}
	return strings.Join(urls, ",")
}

// Node is the node of a name, such as a stream's leader; nil if there is none.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Close kills every node.
func (c *Cluster) Close() {
	for _, n := range c.Nodes {
		n.Kill()
	}
}

// freeAddrs are loopback addresses nobody listens on.
func freeAddrs(ctx context.Context, n int) ([]string, error) {
	var addrs []string
	var held []net.Listener
	var err error
	for range n {
		// All are held until all are found: else the same comes twice.
		l, lerr := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if lerr != nil {
			err = fmt.Errorf("find a free port: %w", lerr)
			break
		}
		held, addrs = append(held, l), append(addrs, l.Addr().String())
	}
	for _, l := range held {
		err = errors.Join(err, l.Close())
	}
	return addrs, err
}
