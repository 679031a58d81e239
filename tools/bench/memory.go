package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/walherd/walherd/producer/pgtest"
)

// memory measures the peak memory of backup-push and backup-fetch against the
// size of the cluster and the number of its files. The data are copies of a
// real pgbench table's file under names of relations that PostgreSQL does not
// know, put into a database's directory: PostgreSQL leaves them alone, a
// backup takes them as relation files of a gigabyte each, as large tables
// have.
func (b *bench) memory(t pgtest.TB) error {
	if !b.opt.memory {
		return nil
	}
	b.logf("making a cluster: memory")
	c := pgtest.New(t, quiet(), pgtest.WithOwnSystemID())
	c.Run("pgbench", "-i", "-q", "-s", "8")
	c.SQL("CHECKPOINT")
	table1 := filepath.Join(c.DataDir(), c.SQL("SELECT pg_relation_filepath('pgbench_accounts')"))
	dir := filepath.Dir(table1)
	tab := table.NewWriter()
	tab.AppendHeader(table.Row{"program", "method", "cluster", "files", "backup-push peak MiB", "wall s", "backup-fetch peak MiB", "wall s"})
	made := 0
	grow := func(gigabytes int) {
		for ; made < gigabytes; made++ {
			// 1 GiB is 131072 pages; the table has at least 13000.
			c.Run("/bin/bash", "-c", fmt.Sprintf(
				"set -e; for i in 1 2 3 4 5 6 7 8 9 10 11; do cat %s; done | head -c 1073741824 > %s/900000.%d || [ $? = 141 ]", table1, dir, made))
		}
	}
	measure := func(what string) error {
		size, err := dataSize(c)
		if err != nil {
			return err
		}
		files, err := countFiles(c.DataDir())
		if err != nil {
			return err
		}
		for _, m := range methods() {
			for _, p := range b.programs {
				b.logf("memory: %s, %s: %s", what, m.name, p.name)
				out, target := filepath.Join(c.Dir(), "push"), filepath.Join(c.Dir(), "fetched")
				push, err := b.measure(c, contender{script: "exec " + p.path + " backup-push --full " + c.DataDir(), env: b.env(m, out), out: out})
				if err != nil {
					return fmt.Errorf("measure memory: %s: %s backup-push: %w", what, p.name, err)
				}
				fetch, err := b.measure(c, contender{
					script: "exec " + p.path + " backup-fetch " + target + " LATEST", env: b.env(m, out), out: target, wantBytes: size * 95 / 100,
				})
				if err != nil {
					return fmt.Errorf("measure memory: %s: %s backup-fetch: %w", what, p.name, err)
				}
				tab.AppendRow(table.Row{p.name, m.name, fmt.Sprintf("%s (%.1f GiB)", what, float64(size)/(1<<30)), files,
					push.rss >> 20, fmt.Sprintf("%.1f", push.wall.Seconds()), fetch.rss >> 20, fmt.Sprintf("%.1f", fetch.wall.Seconds())})
				for _, d := range []string{out, target} {
					if err := os.RemoveAll(d); err != nil {
						return fmt.Errorf("remove the last result: %w", err)
					}
				}
			}
		}
		return nil
	}
	for _, gb := range []int{1, b.opt.gigabytes} {
		grow(gb)
		if err := measure(fmt.Sprintf("%d GiB of data", gb)); err != nil {
			return err
		}
	}
	for i := range made {
		if err := os.Remove(fmt.Sprintf("%s/900000.%d", dir, i)); err != nil {
			return fmt.Errorf("remove the large files: %w", err)
		}
	}
	if err := smallFiles(table1, dir, b.opt.files); err != nil {
		return err
	}
	if err := measure(strconv.Itoa(b.opt.files) + " small files"); err != nil {
		return err
	}
	fmt.Fprintf(b.stdout, "\n## Peak memory\n\nOne run each; the data are copies of pgbench_accounts in files of 1 GiB, the small files have one page each.\n\n%s\n",
		tab.RenderMarkdown())
	return nil
}

func countFiles(dir string) (int, error) {
	n := 0
	err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("count files: %w", err)
	}
	return n, nil
}

// smallFiles makes n relation files of one page each, with the pages of a
// table.
func smallFiles(like, dir string, n int) error {
	from, err := os.Open(like)
	if err != nil {
		return fmt.Errorf("make small files: %w", err)
	}
	defer from.Close()
	fi, err := from.Stat()
	if err != nil {
		return fmt.Errorf("make small files: %w", err)
	}
	owner, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("make small files: the table's owner is unknown")
	}
	const pageSize = 8192
	page := make([]byte, pageSize)
	for i := range n {
		if _, err := from.ReadAt(page, int64(i)*pageSize%fi.Size()); err != nil {
			return fmt.Errorf("make small files: %w", err)
		}
		name := filepath.Join(dir, strconv.Itoa(1_000_000+i))
		if err := os.WriteFile(name, page, 0o600); err != nil {
			return fmt.Errorf("make small files: %w", err)
		}
		if err := os.Chown(name, int(owner.Uid), int(owner.Gid)); err != nil {
			return fmt.Errorf("make small files: %w", err)
		}
	}
	return nil
}
