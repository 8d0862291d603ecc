package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
)

// newEndpoint is the demo's world as a process of its own: for docker compose.
func newEndpoint() *cobra.Command {
	listen, seed := "127.0.0.1:4566", uint64(1)
	cmd := &cobra.Command{
		Use: "demo-endpoint", Args: exactly(0),
		Short:   "Run the demo's AWS by itself, with its samples",
		Long:    "Runs the AWS of the demo by itself: S3, SQS and the APIs, filled with the demo's\nsamples. It keeps all in memory. It is made for trying penstock out and checks no\nsignatures: do not let strangers reach it.\n\nSources read from it with its address as aws.endpoint_url and any key pair:\ndeploy/penstock.demo.yaml has one for each queue and bucket that it fills.",
		Example: "  penstock demo-endpoint --listen 127.0.0.1:4566",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cloud.Start(cmd.Context(), cloud.Options{Addr: listen})
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := feed.Install(cmd.Context(), c, feed.Demo(seed)); err != nil {
				return err
			}
			if _, err := fillWorld(cmd.Context(), c, seed); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "S3, SQS and APIs at %s\n", c.URL())
			<-cmd.Context().Done()
			return nil
		},
	}
	cmd.Flags().StringVar(&listen, "listen", listen, "address to listen at, host:port")
	cmd.Flags().Uint64Var(&seed, "seed", seed, "seed of the sample objects")
	return cmd
}
