package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/tools/walherd/settings"
)

// commands builds the command tree for a command line.
func (a *app) commands(args []string) *cobra.Command {
	root := &cobra.Command{
		Use:   a.name,
		Short: "PostgreSQL backup and WAL archiving",
		Long: "walherd archives WAL and takes base backups of PostgreSQL clusters, in WAL-G's formats.\n" +
			"Every setting (" + a.name + " flags) can be given as a flag, an environment variable or in a config file.",
		Version:       versionText(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetVersionTemplate("{{.Name}} version {{.Version}}\n")
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().String(settings.ConfigFlag, "", "config file (json, yaml, toml, env); without it WALG_CONFIG_PATH, then ~/.walg.*")
	root.PersistentFlags().BoolVar(&a.turbo, "turbo", false, "ignore the rate limits and GOMAXPROCS, and read from disk with at least four readers")
	settings.RegisterGivenFlags(root.PersistentFlags(), args)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{err, cmd.UsageString()} })
	root.AddCommand(
		a.backupPush(), a.backupFetch(), a.backupList(), a.walPush(), a.walFetch(), a.walPrefetch(), a.worker(), a.agent(), a.serve(), a.brokerProcess(),
		a.daemon(), a.daemonClient(), a.request(), a.healthCommand(), a.deltaBaseCommand(), a.walChangesCommand(),
		a.walShow(), a.walVerify(), a.walRestore(), a.backupMark(), a.deleteCommand(),
		a.storageTools(), a.copyCommand(), a.pgBackRest(), a.status(), a.queue(), a.deadLetters(), a.flags(), a.completion(),
	)
	for _, cmd := range append(root.Commands(), root) {
		cmd.Args = usageArgs(cmd.Args)
	}
	return root
}

// usageArgs makes the complaints of an argument check usage errors.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{err, cmd.UsageString()}
		}
		return nil
	}
}

// group makes a command that only has others below it: without one of them it
// tells which there are, and another word is a mistake.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = usageArgs(cobra.NoArgs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// flags lists every setting. The text goes to stderr, as WAL-G's does.
func (a *app) flags() *cobra.Command {
	var markdown bool
	cmd := &cobra.Command{
		Use:   "flags",
		Short: "Describe every setting and its flag",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if markdown {
				return settings.Describe(a.stdout)
			}
			return settings.DescribeFlags(a.stderr)
		},
	}
	cmd.Flags().BoolVar(&markdown, "markdown", false, "print the settings page of the documentation to stdout")
	return cmd
}

func (a *app) completion() *cobra.Command {
	return &cobra.Command{
		Use:                   "completion bash|zsh|fish",
		Short:                 "Print the shell's completion code",
		DisableFlagsInUseLine: true,
		ValidArgs:             []string{"bash", "zsh", "fish"},
		Args:                  cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			return map[string]func(io.Writer) error{
				"bash": func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
				"zsh":  root.GenZshCompletion,
				"fish": func(w io.Writer) error { return root.GenFishCompletion(w, true) },
			}[args[0]](a.stdout)
		},
	}
}

// stringOver folds a command's own flag into a setting: the flag wins.
func stringOver(cmd *cobra.Command, flag string, setting *string) {
	if f := cmd.Flags().Lookup(flag); f != nil && f.Changed {
		*setting = f.Value.String()
	}
}

// boolOver folds a command's own switch into a setting.
func boolOver(cmd *cobra.Command, flag string, setting *bool) {
	if v, err := cmd.Flags().GetBool(flag); err == nil && v {
		*setting = true
	}
}

// refuseLater refuses a command's own flags that belong to later versions and
// would change what is stored or restored.
func refuseLater(cmd *cobra.Command, flags ...string) error {
	var given []string
	for _, name := range flags {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
			given = append(given, "--"+name)
		}
	}
	if len(given) > 0 {
		return fmt.Errorf("%s: not supported yet", strings.Join(given, ", "))
	}
	return nil
}

// targetStorageFlag is common to the commands that choose a storage.
func (a *app) targetStorageFlag(cmd *cobra.Command) {
	cmd.Flags().String("target-storage", "", "storage to use, by name (default: default, or by what failover finds)")
}

// pickStorage folds --target-storage in.
func (a *app) pickStorage(cmd *cobra.Command) error {
	stringOver(cmd, "target-storage", &a.set.General.TargetStorage)
	return a.set.Validate()
}

var errNotYet = errors.New("not supported yet")
