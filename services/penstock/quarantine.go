package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/topology"
)

func newQuarantine() *cobra.Command {
	cmd := &cobra.Command{Use: "quarantine", Short: "Look at what could not be processed"}
	cmd.AddCommand(newQuarantineList(), newQuarantineShow())
	return cmd
}

// entry is a quarantine entry as it is printed.
type entry struct {
	ID          string    `json:"id"`
	Time        time.Time `json:"time"`
	Stage       string    `json:"stage"`
	Source      string    `json:"source"`
	Code        string    `json:"code"`
	Reason      string    `json:"reason"`
	Origin      string    `json:"origin"`
	Destination string    `json:"destination,omitempty"`
	Record      uint64    `json:"record"`
	Records     uint64    `json:"records"`
	Offset      int64     `json:"offset"`
	Length      int64     `json:"length"`
	Attempts    uint32    `json:"attempts"`
	Holds       string    `json:"holds"`
	Size        int       `json:"payload_bytes"`
	Cut         bool      `json:"payload_cut"`
	Subject     string    `json:"subject,omitempty"`
	Trace       string    `json:"traceparent,omitempty"`
	Version     string    `json:"penstock"`
}

func toEntry(q *messages.Quarantine) entry {
	return entry{
		ID: q.Id, Time: time.Unix(0, q.Time).UTC(), Stage: q.Stage, Source: q.Source, Code: q.Code, Reason: q.Reason,
		Origin: originName(q.Origin), Destination: q.Destination, Record: q.Record, Records: q.Records, Offset: q.Offset, Length: q.Length,
		Attempts: q.Attempts, Holds: strings.ToLower(strings.TrimPrefix(q.Holds.String(), "HOLDS_")), Size: len(q.Payload), Cut: q.Cut,
		Subject: q.Subject, Trace: q.Traceparent, Version: q.Penstock,
	}
}

// originName is how people name what an origin means.
func originName(o *messages.Origin) string {
	switch {
	case o.GetKey() != "" && o.GetVersion() != "":
		return fmt.Sprintf("s3://%s/%s?versionId=%s", o.Bucket, o.Key, o.Version)
	case o.GetKey() != "":
		return "s3://" + o.Bucket + "/" + o.Key
	case o.GetMessageId() != "":
		return "sqs message " + o.MessageId
	}
	return "-"
}

func newQuarantineList() *cobra.Command {
	var flags busFlags
	var asJSON bool
	var stage, source, code string
	cmd := &cobra.Command{
		Use: "list", Args: exactly(0), Short: "List what was refused, with the reasons",
		Example: "  penstock quarantine list --store penstock-data\n  penstock quarantine list --stage parse --code parse.bad_json --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			entries := []entry{}
			err = bus.Read(cmd.Context(), topology.Span{Subject: "penstock.quarantine.>"}, func(m topology.Stored) error {
				q, err := messages.DecodeQuarantine(m.Data)
				if err != nil {
					return err
				}
				if stage != "" && q.Stage != stage || source != "" && q.Source != source || code != "" && q.Code != code {
					return nil
				}
				entries = append(entries, toEntry(q))
				return nil
			})
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), entries)
			}
			if len(entries) == 0 {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "quarantine is empty")
				return err
			}
			t := table(cmd.OutOrStdout())
			fmt.Fprintln(t, "ID\tTIME\tSTAGE\tSOURCE\tCODE\tRECORD\tBYTES\tORIGIN")
			for _, e := range entries {
				record := "-"
				if e.Records > 0 {
					record = strconv.FormatUint(e.Record, 10)
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", e.ID, e.Time.Format(time.DateTime), e.Stage, printable(e.Source), e.Code, record, e.Size, printable(e.Origin))
			}
			return t.Flush()
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the reasons")
	cmd.Flags().StringVar(&stage, "stage", "", "only of this stage")
	cmd.Flags().StringVar(&source, "source", "", "only of this source")
	cmd.Flags().StringVar(&code, "code", "", "only with this code")
	return cmd
}

func newQuarantineShow() *cobra.Command {
	var flags busFlags
	var rawBytes bool
	cmd := &cobra.Command{
		Use: "show ID", Args: exactly(1), Short: "Show one entry with its reason and its bytes",
		Example: "  penstock quarantine show 0a1b2c… --store penstock-data\n  penstock quarantine show 0a1b2c… --raw > record.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			var found *messages.Quarantine
			err = bus.Read(cmd.Context(), topology.Span{Subject: "penstock.quarantine.>"}, func(m topology.Stored) error {
				q, err := messages.DecodeQuarantine(m.Data)
				if err == nil && strings.HasPrefix(q.Id, args[0]) {
					found = q
				}
				return err
			})
			if err != nil {
				return err
			}
			if found == nil {
				return fmt.Errorf("quarantine has no entry %s; see penstock quarantine list", args[0])
			}
			if rawBytes {
				_, err := cmd.OutOrStdout().Write(found.Payload)
				return err
			}
			if err := writeJSON(cmd.OutOrStdout(), toEntry(found)); err != nil {
				return err
			}
			return showPayload(cmd.OutOrStdout(), found.Payload)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&rawBytes, "raw", false, "print the bytes alone, as they are")
	return cmd
}

// showPayload prints text as text and the rest as a hex dump, at most 4 KiB.
func showPayload(w io.Writer, payload []byte) error {
	const most = 4 << 10
	part := payload[:min(len(payload), most)]
	text := printable(string(part))
	if strings.Count(text, "·") > len(text)/10 {
		text = hex.Dump(part)
	}
	if _, err := fmt.Fprintln(w, text); err != nil {
		return err
	}
	if len(payload) > most {
		_, err := fmt.Fprintf(w, "… %d more bytes: --raw prints all\n", len(payload)-most)
		return err
	}
	return nil
}

// printable keeps what a stranger wrote from controlling the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) && r != '\n' && r != '\t' {
			return '·'
		}
		return r
	}, s)
}
