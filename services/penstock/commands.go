package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/internal/telemetry"
)

func newVersion() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Args: exactly(0), Short: "Print the version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := telemetry.BuildInfo()
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), b)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "penstock %s (%s, %s)\n", b.Version, b.Commit, b.Go)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// newHealth asks a running penstock how it is: for container health checks, in
// images that hold nothing but this program.
func newHealth() *cobra.Command {
	url, timeout := "", 3*time.Second
	cmd := &cobra.Command{
		Use: "health", Args: exactly(0), Short: "Ask a running penstock whether it is ready; exit code 1 when not",
		Example: "  penstock health --url http://127.0.0.1:8080/readyz",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return usageError{fmt.Errorf("--url: %w", err)}
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				return fmt.Errorf("%w; start penstock, or name its telemetry.address with --url", err)
			}
			defer func() { _ = response.Body.Close() }()
			body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
			if err != nil {
				return err
			}
			if _, err := cmd.OutOrStdout().Write(body); err != nil {
				return err
			}
			if response.StatusCode != http.StatusOK {
				return fmt.Errorf("%s answers %s", url, response.Status)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&url, "url", "http://127.0.0.1:8080/readyz", "address of the health page")
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait")
	return cmd
}
