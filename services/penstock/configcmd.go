package main

import (
	_ "embed"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/devo"
)

//go:generate env UPDATE_GOLDEN=1 go test -count=1 -run ^TestGeneratedFilesAreInDate$ .

var (
	//go:embed schema.json
	schema []byte
	//go:embed example.yaml
	example []byte
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check, show and explain the configuration"}
	cmd.AddCommand(newConfigCheck(), newConfigShow(), newConfigSchema(), newConfigInit(), newConfigImport())
	return cmd
}

// configArg is the file that a config command is about.
func configArg(args []string) string {
	if len(args) == 0 {
		return "penstock.yaml"
	}
	return args[0]
}

func newConfigCheck() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check [FILE]", Args: atMostOne,
		Short:   "Check a configuration file and report every problem at once; exit code 2 when there is one",
		Example: "  penstock config check penstock.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := loadFile(configArg(args))
			var problems *config.Error
			if asJSON && (err == nil || errors.As(err, &problems)) {
				list := []config.Problem{}
				if problems != nil {
					list = problems.Problems
				}
				if jsonErr := writeJSON(cmd.OutOrStdout(), list); jsonErr != nil {
					return jsonErr
				}
				if err != nil {
					return usageError{errSilent}
				}
				return nil
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is fine\n", configArg(args))
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the problems as JSON")
	return cmd
}

func newConfigShow() *cobra.Command {
	return &cobra.Command{
		Use: "show [FILE]", Args: atMostOne,
		Short:   "Print the configuration with all defaults filled in and all secrets hidden",
		Example: "  penstock config show penstock.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := loadFile(configArg(args))
			if err != nil {
				return err
			}
			out, err := config.Effective(f)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	}
}

func newConfigSchema() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Args: exactly(0), Short: "Print the JSON Schema of the configuration file, for editors",
		Example: "  penstock config schema > penstock.schema.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(schema)
			return err
		},
	}
}

func newConfigInit() *cobra.Command {
	return &cobra.Command{
		Use: "init", Args: exactly(0), Short: "Print a configuration file to begin with",
		Example: "  penstock config init > penstock.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(example)
			return err
		},
	}
}

func newConfigImport() *cobra.Command {
	cmd := &cobra.Command{Use: "import", Short: "Make a configuration of that of another program"}
	cmd.AddCommand(newImportDevo())
	return cmd
}

func newImportDevo() *cobra.Command {
	return &cobra.Command{
		Use: "devo FILE", Args: exactly(1), Short: "Turn a configuration of Devo's AWS collector into one of penstock",
		Long: `Reads the configuration of Devo's AWS collector (YAML or JSON): its inputs,
credentials, services, types, regions, queues and tags. Prints one of penstock that
does the same, and to standard error what it could not carry over, by line.

Secrets are not copied: the result names variables of the environment. What is wrong
in the file is reported all at once, with the collector's own error class and number
and a code that is unique; exit code 2.`,
		Example: "  penstock config import devo collector.yaml > penstock.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := os.ReadFile(args[0])
			if err != nil {
				return usageError{fmt.Errorf("%w; name the configuration file of the collector", err)}
			}
			collector, err := devo.Read(data)
			if err != nil {
				return usageError{fmt.Errorf("%s:\n%w", args[0], err)}
			}
			text, notes, err := collector.Convert()
			if err != nil {
				return err
			}
			for _, n := range notes {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s:%d: %s\n", args[0], n.Line, n.Text)
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
}
