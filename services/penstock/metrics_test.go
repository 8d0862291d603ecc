package main

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/penstock/penstock/services/internal/golden"
)

// metric is one that the code defines.
type metric struct {
	name, kind, help, labels string
}

// definedMetrics reads the metrics out of the sources: a registry does not know those of
// which nothing was counted yet.
func definedMetrics(t *testing.T) []metric {
	t.Helper()
	var all []metric
	for _, root := range []string{"..", "../../topology", "../../messages"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					if m, ok := metricOf(call); ok {
						all = append(all, m)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(all, func(a, b metric) int { return cmp.Compare(a.name, b.name) })
	return slices.Compact(all)
}

// metricOf reads promauto.NewCounterVec(prometheus.CounterOpts{…}, []string{…}) and
// prometheus.NewDesc(…).
func metricOf(call *ast.CallExpr) (metric, bool) {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || len(call.Args) == 0 {
		return metric{}, false
	}
	if f.Sel.Name == "NewDesc" && len(call.Args) >= 3 {
		return metric{name: text(call.Args[0]), kind: "gauge", help: text(call.Args[1]), labels: labelsOf(call.Args[2])}, true
	}
	kind, ok := strings.CutPrefix(f.Sel.Name, "New")
	kind = strings.TrimSuffix(strings.TrimSuffix(kind, "Vec"), "Func")
	opts, isOpts := call.Args[0].(*ast.CompositeLit)
	if !ok || !isOpts || !slices.Contains([]string{"Counter", "Gauge", "Histogram", "Summary"}, kind) {
		return metric{}, false
	}
	m := metric{kind: strings.ToLower(kind)}
	for _, e := range opts.Elts {
		if pair, ok := e.(*ast.KeyValueExpr); ok {
			switch key, _ := pair.Key.(*ast.Ident); key.Name {
			case "Name":
				m.name = text(pair.Value)
			case "Help":
				m.help = text(pair.Value)
			}
		}
	}
	if len(call.Args) > 1 {
		m.labels = labelsOf(call.Args[1])
	}
	return m, m.name != ""
}

// text is a string literal, or several that are added up.
func text(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, _ := strconv.Unquote(e.Value)
		return s
	case *ast.BinaryExpr:
		return text(e.X) + text(e.Y)
	}
	return ""
}

func labelsOf(e ast.Expr) string {
	list, ok := e.(*ast.CompositeLit)
	if !ok {
		return ""
	}
	var names []string
	for _, l := range list.Elts {
		names = append(names, "`"+text(l)+"`")
	}
	return strings.Join(names, ", ")
}

// covers: design section 8
func TestMetricsPageIsInDate(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("# Metrics\n\nServed at `/metrics` of `telemetry.address` for Prometheus, and sent by OTLP where\n`OTEL_EXPORTER_OTLP_ENDPOINT` is set. What to watch, and what to do when it goes wrong,\nis in the [runbook of alarms](../runbooks/alarms.md); `deploy/prometheus` has the rules,\n`deploy/grafana` a dashboard. This page is generated from the code.\n")
	area := ""
	for _, m := range definedMetrics(t) {
		if m.help == "" {
			t.Errorf("metric %s has no help text", m.name)
		}
		if a := strings.Split(m.name, "_")[1]; a != area {
			area = a
			fmt.Fprintf(&b, "\n## %s\n\n| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n", area)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, m.kind, m.labels, strings.ReplaceAll(m.help, "|", "\\|"))
	}
	golden.Check(t, filepath.Join("..", "..", "docs", "reference", "metrics.md"), b.Bytes())
}
