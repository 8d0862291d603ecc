package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/internal/telemetry"
)

func newVersion() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Args: exactly(0), Short: "Print the version",
		Example: "  penstock version --json",
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
	url, timeout, asJSON := "", 3*time.Second, false
	var trust healthTLS
	cmd := &cobra.Command{
		Use: "health", Args: exactly(0), Short: "Ask a running penstock whether it is ready; exit code 1 when not",
		Example: "  penstock health --url http://127.0.0.1:8080/readyz\n  penstock health --url https://127.0.0.1:8080/readyz --ca-file ca.pem --server-name penstock-parse",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return usageError{fmt.Errorf("--url: %w", withoutAddress(err))}
			}
			client, err := trust.client()
			if err != nil {
				return err
			}
			response, err := client.Do(request)
			if err != nil {
				return fmt.Errorf("ask %s: %w; start penstock, or name its telemetry.address with --url", request.URL.Host, withoutAddress(err))
			}
			defer func() { _ = response.Body.Close() }()
			body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
			if err != nil {
				return err
			}
			if asJSON && !json.Valid(body) {
				err = writeJSON(cmd.OutOrStdout(), map[string]any{"status": response.StatusCode, "answer": strings.TrimSpace(string(body))})
			} else {
				_, err = cmd.OutOrStdout().Write(body)
			}
			if err != nil {
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
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&trust.ca, "ca-file", "", "certificates to trust, as PEM, where telemetry.tls is set")
	cmd.Flags().StringVar(&trust.cert, "cert-file", "", "client certificate, as PEM, where one is required")
	cmd.Flags().StringVar(&trust.key, "key-file", "", "key of the client certificate, as PEM")
	cmd.Flags().StringVar(&trust.name, "server-name", "", "name that the certificate of penstock carries, when it is not the address")
	return cmd
}

// healthTLS says how to ask a health page over TLS.
type healthTLS struct{ ca, cert, key, name string }

func (c healthTLS) client() (*http.Client, error) {
	if (c.cert == "") != (c.key == "") {
		return nil, usageError{errors.New("give --cert-file and --key-file together")}
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.name}
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return nil, usageError{fmt.Errorf("--ca-file: %w", err)}
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usageError{fmt.Errorf("--ca-file: %s holds no certificate", c.ca)}
		}
	}
	if c.cert != "" {
		pair, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return nil, usageError{fmt.Errorf("--cert-file: %w", err)}
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}, nil
}
