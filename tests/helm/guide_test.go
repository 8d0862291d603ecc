package helm

import (
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestGuide renders each piece of values that the guide shows, over the first one.
func TestGuide(t *testing.T) {
	text, err := os.ReadFile("../../docs/guides/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	if len(blocks) < 5 {
		t.Fatalf("the guide shows %d pieces of values", len(blocks))
	}
	first, _, _ := strings.Cut(blocks[0], "```")
	base := with(t, map[string]any{}, first)
	if got := names(render(t, base), "ingest"); got != "logs-penstock-ingest" {
		t.Errorf("the first installation has no ingest: %q", got)
	}
	for _, block := range blocks[1:] {
		block, _, _ = strings.Cut(block, "```")
		render(t, with(t, base, block))
	}
}

// TestNATSValues: the servers on Kubernetes have the limits of those elsewhere.
func TestNATSValues(t *testing.T) {
	data, err := os.ReadFile("../../deploy/helm/nats-values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values struct {
		Config struct {
			Cluster struct {
				Enabled  bool
				Replicas int
			}
			JetStream struct {
				FileStore, MemoryStore struct{ MaxSize string }
				Merge                  map[string]any
			}
			Merge map[string]any
		}
	}
	if err := yaml.Unmarshal(data, &values); err != nil {
		t.Fatal(err)
	}
	c := values.Config
	if !c.Cluster.Enabled || c.Cluster.Replicas != 3 {
		t.Errorf("cluster: %+v", c.Cluster)
	}
	conf, err := os.ReadFile("../../deploy/nats.conf")
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]any{
		"max_payload": c.Merge["max_payload"], "max_pending": c.Merge["max_pending"], "write_deadline": c.Merge["write_deadline"],
		"sync_interval": c.JetStream.Merge["sync_interval"], "max_file_store": c.JetStream.FileStore.MaxSize, "max_memory_store": c.JetStream.MemoryStore.MaxSize,
	} {
		text, _ := value.(string)
		text = strings.TrimSpace(strings.Trim(text, "<> "))
		if text == "" || !strings.Contains(strings.ReplaceAll(string(conf), `"`, ""), key+": "+text+"\n") {
			t.Errorf("%s is %q, which is not what deploy/nats.conf has", key, text)
		}
	}
}
