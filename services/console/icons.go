package console

import (
	"fmt"
	"html/template"
)

// icons are drawn on 24 by 24 with a line: the path of each.
var icons = map[string]string{
	"pipeline":    "M3 12h4m10 0h4M7 7h10v10H7zM11 12h2",
	"source":      "M12 3v10m0 0-4-4m4 4 4-4M4 15v4a2 2 0 0 0 2 2h12a2 2 0 0 0 2-2v-4",
	"destination": "M12 21V11m0 0-4 4m4-4 4 4M4 9V5a2 2 0 0 1 2-2h12a2 2 0 0 1 2 2v4",
	"events":      "M4 6h16M4 12h16M4 18h10",
	"replay":      "M4 12a8 8 0 1 0 2.5-5.8M4 4v4h4",
	"quarantine":  "M12 3l9 16H3zM12 10v4m0 2.5v.5",
	"ledger":      "M6 3h12v18H6zM9 8h6M9 12h6M9 16h3",
	"topology":    "M12 4v5M6 20v-5h12v5M12 9v6M9 4h6M4 20h4m8 0h4",
	"settings":    "M4 7h10m4 0h2M4 17h2m4 0h10M16 5v4M8 15v4",
	"audit":       "M12 3l7 3v6c0 4.5-3 7.5-7 9-4-1.5-7-4.5-7-9V6zM9 12l2 2 4-4",
	"search":      "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16.5 16.5 21 21",
	"sun":         "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2m0 16v2M4.9 4.9l1.4 1.4m11.4 11.4 1.4 1.4M2 12h2m16 0h2M4.9 19.1l1.4-1.4M17.7 6.3l1.4-1.4",
	"moon":        "M20 14.5A8 8 0 0 1 9.5 4 8 8 0 1 0 20 14.5z",
	"auto":        "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 3v18M15 5v14M18 7.5v9",
	"menu":        "M4 6h16M4 12h16M4 18h16",
	"logout":      "M14 4h4a2 2 0 0 1 2 2v12a2 2 0 0 1-2 2h-4M10 8l-4 4 4 4M6 12h10",
	"user":        "M12 4a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM4 21c0-4 3.5-6 8-6s8 2 8 6",
	"close":       "M6 6l12 12M18 6 6 18",
	"right":       "M9 5l7 7-7 7",
	"down":        "M5 9l7 7 7-7",
	"warning":     "M12 3l9 16H3zM12 10v4m0 2.5v.5",
	"check":       "M5 13l4 4L19 7",
	"pause":       "M8 5v14M16 5v14",
	"play":        "M7 5l12 7-12 7z",
	"download":    "M12 4v11m0 0-4-4m4 4 4-4M4 20h16",
	"box":         "M4 8l8-4 8 4v8l-8 4-8-4zM4 8l8 4 8-4M12 12v8",
	"trash":       "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13",
	"clock":       "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16zM12 8v4l3 2",
}

// icon draws one beside a text that says the same.
func icon(name string) (template.HTML, error) {
	d, ok := icons[name]
	if !ok {
		return "", fmt.Errorf("no icon %s", name)
	}
	return template.HTML(`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d="` + d + `"/></svg>`), nil //nolint:gosec // of ours
}
