package status

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/penstock/penstock/topology"
)

// question asks every process what its counters say.
const question = "stats"

// counters are what a process says to that: sums since it began.
type counters struct {
	Process Process                `json:"process"`
	Stages  map[string]count       `json:"stages"`
	Targets map[string]target      `json:"destinations,omitempty"`
	Down    map[string]bool        `json:"sources_down,omitempty"`
	Lanes   float64                `json:"lanes,omitempty"`
	Blocked bool                   `json:"publish_blocked,omitempty"`
	BadFile bool                   `json:"bad_configuration,omitempty"`
	Restart bool                   `json:"restart_needed,omitempty"`
	Lag     map[string]consumerLag `json:"lag,omitempty"`
}

// count is what the counters of one stage say.
type count struct {
	In          float64 `json:"in"`
	Out         float64 `json:"out"`
	Bytes       float64 `json:"bytes"`
	Errors      float64 `json:"errors"`
	Quarantined float64 `json:"quarantined"`
	Duplicates  float64 `json:"duplicates,omitempty"`
	Filtered    float64 `json:"filtered,omitempty"`
}

type target struct {
	Delivered   float64 `json:"delivered"`
	Quarantined float64 `json:"quarantined"`
}

type consumerLag struct {
	Seconds float64 `json:"seconds"`
}

// Answer tells those that ask what the counters of this process say, until ctx ends.
func Answer(ctx context.Context, bus *topology.Bus, process string, stages []topology.Stage) error {
	names := make([]string, len(stages))
	for i, s := range stages {
		names[i] = string(s)
	}
	p := Process{Name: process, Version: topology.ProgramVersion, Stages: names, Started: time.Now().UTC()}
	var mu sync.Mutex
	var last []byte
	var at time.Time
	return bus.Answer(ctx, question, func() []byte {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(at) > statsFresh {
			families, _ := prometheus.DefaultGatherer.Gather() // what could be gathered comes with an error
			c := read(families, p)
			last, _ = json.Marshal(c) // cannot fail
			at = time.Now()
		}
		return last
	})
}

// statsFresh is how long what was gathered is good enough for who asks next.
const statsFresh = 200 * time.Millisecond

// read makes sums of metrics.
func read(families []*dto.MetricFamily, p Process) counters {
	c := counters{Process: p, Stages: map[string]count{}, Targets: map[string]target{}, Down: map[string]bool{}, Lag: map[string]consumerLag{}}
	all := map[string]*dto.MetricFamily{}
	for _, f := range families {
		all[f.GetName()] = f
	}
	sum := func(name string, match ...string) float64 { return total(all[name], match...) }
	for _, s := range p.Stages {
		n := count{Quarantined: sum("penstock_quarantined_records_total", "stage", s)}
		switch topology.Stage(s) {
		case topology.Ingest:
			// Messages, pages of an API, requests and objects that were listed are what comes
			// in; what goes out are objects to fetch and records.
			records := sum("penstock_ingest_http_records_total", "result", "accepted") + sum("penstock_poll_records_total")
			announced := sum("penstock_ingest_announced_total", "as", "object") + sum("penstock_ingest_announced_total", "as", "events")
			n.In = sum("penstock_ingest_messages_received_total") + records
			n.Out = announced + records
			n.Bytes = sum("penstock_ingest_http_bytes_total") + sum("penstock_poll_bytes_total")
			n.Errors = sum("penstock_ingest_call_errors_total")
			n.Filtered = sum("penstock_ingest_ignored_total")
		case topology.Fetch:
			n.In, n.Out, n.Bytes = sum("penstock_fetch_objects_total"), sum("penstock_fetch_records_total"), sum("penstock_fetch_raw_bytes_total")
			n.Errors = sum("penstock_fetch_objects_total", "result", "retried")
		case topology.Parse:
			n.In, n.Out, n.Bytes = sum("penstock_parse_records_total"), sum("penstock_parse_events_total"), sum("penstock_parse_read_bytes_total")
			n.Errors = sum("penstock_bus_handled_messages_total", "consumer", "parse", "result", "retried")
		case topology.Dedupe:
			n.Out, n.Duplicates = sum("penstock_dedupe_events_total", "verdict", "unique"), sum("penstock_dedupe_events_total", "verdict", "duplicate")
			n.In = n.Out + n.Duplicates
		case topology.Route:
			n.Out, n.Filtered = sum("penstock_route_events_total"), sum("penstock_route_dropped_total")
			n.In = n.Out + n.Filtered
			n.Errors = sum("penstock_bus_handled_messages_total", "consumer", "route", "result", "retried")
		case topology.Deliver:
			n.Out = sum("penstock_deliver_events_confirmed_total")
			n.Filtered = sum("penstock_deliver_events_filtered_total") + sum("penstock_deliver_events_skipped_total")
			n.In = n.Out + n.Filtered + sum("penstock_deliver_events_quarantined_total")
			n.Bytes, n.Errors = sum("penstock_deliver_encoded_bytes_total"), sum("penstock_deliver_retries_total")
		}
		c.Stages[s] = n
	}
	each(all["penstock_deliver_events_confirmed_total"], "destination", func(name string, v float64) {
		t := c.Targets[name]
		t.Delivered += v
		c.Targets[name] = t
	})
	each(all["penstock_deliver_events_quarantined_total"], "destination", func(name string, v float64) {
		t := c.Targets[name]
		t.Quarantined += v
		c.Targets[name] = t
	})
	each(all["penstock_ingest_source_up"], "source", func(name string, v float64) {
		if v == 0 {
			c.Down[name] = true
		}
	})
	each(all["penstock_bus_lag_seconds"], "consumer", func(name string, v float64) { c.Lag[name] = consumerLag{v} })
	c.Lanes = sum("penstock_dedupe_lanes_owned")
	c.Blocked = sum("penstock_bus_publish_blocked") > 0
	c.BadFile = all["penstock_config_last_reload_successful"] != nil && sum("penstock_config_reloads_total") > 0 && sum("penstock_config_last_reload_successful") == 0
	c.Restart = sum("penstock_config_restart_needed") > 0
	c.Process.CPU, c.Process.Memory = sum("process_cpu_seconds_total"), uint64(sum("process_resident_memory_bytes"))
	return c
}

// total sums the metrics of a family whose labels match: pairs of name and value.
func total(f *dto.MetricFamily, match ...string) (sum float64) {
	for _, m := range f.GetMetric() {
		if matches(m, match) {
			sum += value(m)
		}
	}
	return sum
}

func matches(m *dto.Metric, match []string) bool {
	for i := 0; i+1 < len(match); i += 2 {
		if label(m, match[i]) != match[i+1] {
			return false
		}
	}
	return true
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

func value(m *dto.Metric) float64 {
	return m.GetCounter().GetValue() + m.GetGauge().GetValue()
}

// each calls f for each metric of a family with the value of a label.
func each(f *dto.MetricFamily, name string, use func(value string, v float64)) {
	for _, m := range f.GetMetric() {
		use(label(m, name), value(m))
	}
}
