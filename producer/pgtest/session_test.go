package pgtest

import (
	"errors"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// One psql answers all calls, and no call shows it.
func TestSessionIsAsNew(t *testing.T) {
	t.Parallel()
	c := New(t)
	backend := c.SQL("SELECT pg_backend_pid()")
	for _, tc := range []struct{ statements, want string }{
		{"SELECT 1", "1"},
		{"SELECT 1 -- as said", "1"},
		{"SELECT 1; SELECT 2;", "1\n2"},
		{"SELECT 'a' || chr(10) || 'b', NULL, 2", "a\nb||2"},
		{"", ""},
		{"SELECT 1 WHERE false", ""},
		{"SET work_mem = '7MB'; CREATE TEMP TABLE passing (i int); SHOW work_mem", "7MB"},
		{"SHOW work_mem; SELECT to_regclass('passing') IS NULL", "4MB\nt"},
		{"CREATE TABLE t (i int); INSERT INTO t SELECT generate_series(1, 3000); SELECT count(*) FROM t", "3000"},
		{"DO $$ BEGIN FOR i IN 1..3000 LOOP RAISE WARNING 'more than a pipe holds %', repeat('x', 100); END LOOP; END $$; SELECT 1", "1"},
		{"SELECT repeat('x', 300000)", strings.Repeat("x", 300000)},
		{"SELECT pg_backend_pid()", backend},
	} {
		if got := c.SQL(tc.statements); got != tc.want {
			t.Errorf("%s: got %.100q, want %.100q", tc.statements, got, tc.want)
		}
	}
	// Each statement is a transaction, up to the one that fails.
	_, err := c.SQLErr("postgres", "INSERT INTO t VALUES (0); SELECT 1/0; INSERT INTO t VALUES (0)")
	var exit *exec.ExitError
	if err == nil || !strings.Contains(err.Error(), "division by zero") || !errors.As(err, &exit) {
		t.Errorf("got %v, want the server's reason", err)
	}
	c.SQL("BEGIN; DELETE FROM t")
	if got := c.SQL("SELECT count(*) FROM t"); got != "3001" {
		t.Errorf("%s rows, want 3001", got)
	}
	if got := c.SQL("ALTER SYSTEM SET work_mem = '5MB'; SELECT pg_reload_conf()"); got != "t" {
		t.Errorf("reload: got %q", got)
	}
	if got := c.SQL("SHOW work_mem"); got != "5MB" {
		t.Errorf("after the reload: got %q", got)
	}
}

// Whatever ends the backend between two calls, the next is answered.
func TestSessionIsReplaced(t *testing.T) {
	t.Parallel()
	c := New(t)
	for _, end := range []func(pid string){
		func(pid string) { c.SQLIn("template1", "SELECT pg_terminate_backend("+pid+")"); c.gone(pid) },
		func(string) { c.Restart(Fast) },
		func(string) { c.Kill(); c.Start() },
		func(pid string) { c.Run("kill", "-KILL", pid); c.gone(pid) },
	} {
		pid := c.SQL("SELECT pg_backend_pid()")
		end(pid)
		if got := c.SQL("SELECT pg_backend_pid()"); got == pid {
			t.Errorf("%s is still there", pid)
		}
	}
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			for range 5 {
				if got, err := c.SQLErr("postgres", "SELECT pg_sleep(0.01), 1"); got != "|1" || err != nil {
					t.Errorf("beside others: %q, %v", got, err)
				}
			}
		})
	}
	calls.Wait()
}

// gone waits until the server answers, and a backend of it has ended.
func (c *Cluster) gone(pid string) {
	c.t.Helper()
	for {
		out, err := c.SQLErr("template1", "SELECT count(*) FROM pg_stat_activity WHERE pid = "+pid)
		if err == nil && out == "0" {
			return
		}
	}
}
