package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// drawing is an SVG file under construction. Sizes are in pixels.
type drawing struct {
	strings.Builder
	width, height float64
}

// The colours follow the reader's scheme, light or dark, and have a background of their
// own, since the page around them may have another. Series are told apart by their
// labels, not by colour alone.
const svgStyle = `<style>
.bg{fill:#fff}.grid{stroke:#d1d9e0}.axis{stroke:#59636e}.goal{stroke:#cf222e;stroke-dasharray:5 4}.band{fill:#8c959f;opacity:.16}
text{font:13px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:#1f2328}.title{font-size:16px;font-weight:600}.note{font-size:12px;fill:#59636e}.goaltext{font-size:12px;fill:#cf222e}
.c0{fill:#0969da}.c1{fill:#8c959f}.c2{fill:#bc4c00}.s0{stroke:#0969da}.s2{stroke:#bc4c00}.line{fill:none;stroke-width:2.5}
@media(prefers-color-scheme:dark){.bg{fill:#0d1117}.grid{stroke:#2f353d}.axis{stroke:#9198a1}.goal{stroke:#ff7b72}text{fill:#e6edf3}.note{fill:#9198a1}.goaltext{fill:#ff7b72}
.c0{fill:#4493f8}.c1{fill:#6e7681}.c2{fill:#f0883e}.s0{stroke:#4493f8}.s2{stroke:#f0883e}}
</style>
`

// newDrawing begins with a title and two lines below it, which take headHeight.
func newDrawing(width, height float64, title, note, under string) *drawing {
	d := &drawing{width: width, height: height}
	d.put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %v %v" width="%v" height="%v" role="img">`, width, height, width, height)
	d.put("<title>%v</title>\n", title)
	d.WriteString(svgStyle)
	d.put(`<rect class="bg" width="%v" height="%v"/>`+"\n", width, height)
	d.text(20, 28, "title", "start", title)
	d.text(20, 48, "note", "start", note)
	d.text(20, 65, "note", "start", under)
	return d
}

const headHeight = 74.0

// put adds a piece; numbers are rounded to a tenth of a pixel, texts are escaped.
func (d *drawing) put(format string, args ...any) {
	for i, a := range args {
		switch a := a.(type) {
		case float64:
			args[i] = fmt.Sprint(math.Round(a*10) / 10)
		case string:
			args[i] = html.EscapeString(a)
		}
	}
	fmt.Fprintf(&d.Builder, format, args...)
}

func (d *drawing) text(x, y float64, class, anchor, text string) {
	d.put(`<text class="%v" x="%v" y="%v" text-anchor="%v">%v</text>`+"\n", class, x, y, anchor, text)
}

func (d *drawing) line(class string, x1, y1, x2, y2 float64) {
	d.put(`<line class="%v" x1="%v" y1="%v" x2="%v" y2="%v"/>`+"\n", class, x1, y1, x2, y2)
}

func (d *drawing) rect(class string, x, y, w, h float64) {
	d.put(`<rect class="%v" x="%v" y="%v" width="%v" height="%v"/>`+"\n", class, x, y, max(0, w), max(0, h))
}

func (d *drawing) String() string { return d.Builder.String() + "</svg>\n" }

// bar is one of a chart of bars.
type bar struct {
	label string
	value float64
	class string // colour
	text  string // behind the bar
}

// bars draws horizontal bars from 0 on, with an axis below and, unless it is 0, a line
// at a goal.
func bars(title, note, under, unit string, all []bar, goal float64, goalText string) string {
	const left, right, top, step = 230.0, 110.0, headHeight + 26, 34.0
	const width = 820.0
	bottom := top + step*float64(len(all))
	d := newDrawing(width, bottom+54, title, note, under)
	most := goal
	for _, b := range all {
		most = max(most, b.value)
	}
	ticks := ticksTo(most)
	end := ticks[len(ticks)-1]
	x := func(v float64) float64 { return left + v/end*(width-left-right) }
	for _, t := range ticks {
		d.line("grid", x(t), top-6, x(t), bottom)
		d.text(x(t), bottom+18, "note", "middle", number(t))
	}
	d.text((left+width-right)/2, bottom+40, "note", "middle", unit)
	for i, b := range all {
		y := top + step*float64(i)
		d.text(left-10, y+18, "", "end", b.label)
		d.rect(b.class, left, y+3, x(b.value)-left, 21)
	}
	if goal > 0 {
		d.line("goal", x(goal), top-6, x(goal), bottom)
		d.text(x(goal), top-10, "goaltext", "middle", goalText)
	}
	for i, b := range all { // on top of the goal's line
		y := top + step*float64(i)
		at := x(b.value) + 8
		if goal > 0 && at < x(goal)+4 && at+8*float64(len(b.text)) > x(goal) {
			at = x(goal) + 8
		}
		d.text(at, y+18, "", "start", b.text)
	}
	d.line("axis", left, top-6, left, bottom)
	return d.String()
}

// ticksTo are round numbers from 0 to at least most, at most eight.
func ticksTo(most float64) []float64 {
	if most <= 0 {
		most = 1
	}
	step := math.Pow(10, math.Floor(math.Log10(most)))
	for _, f := range []float64{0.1, 0.2, 0.25, 0.5, 1, 2} {
		if most/(step*f) <= 7 {
			step *= f
			break
		}
	}
	var all []float64
	for i := 0; ; i++ {
		all = append(all, step*float64(i))
		if all[i] >= most*0.999 {
			return all
		}
	}
}

// number is short: 10 k, 2.5.
func number(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.3g M", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.3g k", v/1e3)
	case v >= 1e3:
		return thousands(v)
	}
	return fmt.Sprintf("%.3g", v)
}

// panel is a place for curves, with its axes' ranges.
type panel struct {
	*drawing
	left, top, width, height float64
	least, most              float64 // of x, which is logarithmic
	end                      float64 // of y, which begins with 0
}

func (p *panel) x(v float64) float64 {
	return p.left + math.Log(v/p.least)/math.Log(p.most/p.least)*p.width
}
func (p *panel) y(v float64) float64 { return p.top + p.height - v/p.end*p.height }

// axes draws the grid, with labels at these values.
func (p *panel) axes(xs, ys []float64, xName, yName string) {
	for _, v := range ys {
		p.line("grid", p.left, p.y(v), p.left+p.width, p.y(v))
		p.text(p.left-8, p.y(v)+4, "note", "end", number(v))
	}
	for _, v := range xs {
		p.line("grid", p.x(v), p.top, p.x(v), p.top+p.height)
		p.text(p.x(v), p.top+p.height+18, "note", "middle", number(v))
	}
	p.line("axis", p.left, p.top+p.height, p.left+p.width, p.top+p.height)
	p.line("axis", p.left, p.top, p.left, p.top+p.height)
	p.text(p.left+p.width/2, p.top+p.height+38, "note", "middle", xName)
	p.text(p.left-38, p.top-12, "note", "start", yName)
}

// curve joins points, given as x and y in turn.
func (p *panel) curve(class string, points ...float64) {
	p.WriteString(`<polyline class="line ` + class + `" points="`)
	for i := 0; i < len(points); i += 2 {
		p.put("%v,%v ", p.x(points[i]), p.y(points[i+1]))
	}
	p.WriteString(`"/>` + "\n")
}
