// What Ollama makes of a Modelfile, with Go's own text/template: go run modelfile_render.go Modelfile < conversations.json
//
// The file is read as Ollama reads it: quotes are cut off, nothing inside is unescaped, letters that do not print are dropped.
// Messages of one role that follow each other become one, and the template gets the fields and functions that Ollama gives it.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// Message has the fields of Ollama's that templates use.
type Message struct {
	Role      string `json:"role"`
	Content   string `json:"content"`
	Thinking  string
	Images    []string
	ToolName  string
	ToolCalls []struct{}
}

// Command is a line of a Modelfile; its value may run over several lines of the file.
type Command struct {
	name, value string
}

// Answer is what goes to stdout.
type Answer struct {
	Commands map[string][]string `json:"commands"`
	Texts    []string            `json:"texts"`
}

var functions = template.FuncMap{
	"json": func(value any) string {
		text, _ := json.Marshal(value)
		return string(text)
	},
	"currentDate":   func(...string) string { return time.Now().Format("2006-01-02") },
	"yesterdayDate": func(...string) string { return time.Now().AddDate(0, 0, -1).Format("2006-01-02") },
}

func main() {
	source, err := os.ReadFile(os.Args[1])
	fail(err)
	var conversations [][]Message
	fail(json.NewDecoder(os.Stdin).Decode(&conversations))
	answer := Answer{Commands: map[string][]string{}, Texts: []string{}}
	for _, command := range commands([]rune(string(source))) {
		answer.Commands[command.name] = append(answer.Commands[command.name], command.value)
	}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(answer.Commands["TEMPLATE"][0])
	fail(err)
	for _, messages := range conversations {
		answer.Texts = append(answer.Texts, render(parsed, messages))
	}
	fail(json.NewEncoder(os.Stdout).Encode(answer))
}

func render(parsed *template.Template, messages []Message) string {
	var systems []string
	var collated []*Message
	for i := range messages {
		if messages[i].Role == "system" {
			systems = append(systems, messages[i].Content)
		}
		if last := len(collated) - 1; last >= 0 && collated[last].Role == messages[i].Role && messages[i].Role != "tool" {
			collated[last].Content += "\n\n" + messages[i].Content
		} else {
			collated = append(collated, &messages[i])
		}
	}
	var text strings.Builder
	fail(parsed.Execute(&text, map[string]any{
		"System": strings.Join(systems, "\n\n"), "Messages": collated, "Tools": []any(nil), "Response": "",
		"Think": false, "ThinkLevel": "", "IsThinkSet": false,
	}))
	return text.String()
}

func commands(text []rune) []Command {
	var found []Command
	for at := 0; at < len(text); at++ {
		switch {
		case text[at] == '#':
			_, at = word(text, at, "\r\n")
		case strings.ContainsRune(" \t\r\n", text[at]):
		default:
			var name, value string
			name, at = word(text, at, " \t\r\n")
			if name = strings.ToUpper(name); name == "PARAMETER" {
				name, at = word(text, at+1, " \t\r\n")
			}
			value, at = argument(text, at+1)
			found = append(found, Command{name, value})
		}
	}
	return found
}

func word(text []rune, at int, ends string) (string, int) {
	start := at
	for at < len(text) && !strings.ContainsRune(ends, text[at]) {
		at++
	}
	return string(text[start:at]), at
}

func argument(text []rune, at int) (string, int) {
	var value strings.Builder
	for ; at < len(text); at++ {
		switch letter := text[at]; {
		case letter == '\r' || letter == '\n':
			if whole, isWhole := unquoted(value.String()); isWhole {
				return whole, at
			}
			value.WriteRune(letter)
		case letter == '\t' || strconv.IsPrint(letter):
			value.WriteRune(letter)
		}
	}
	whole, isWhole := unquoted(value.String())
	if !isWhole {
		log.Fatal("a quoted value has no end")
	}
	return whole, at
}

func unquoted(value string) (string, bool) {
	value = strings.TrimSpace(value)
	for _, quotes := range []string{`"""`, `"`} {
		if strings.HasPrefix(value, quotes) {
			inner := strings.TrimPrefix(value, quotes)
			return strings.TrimSuffix(inner, quotes), strings.HasSuffix(inner, quotes)
		}
	}
	return value, true
}

func fail(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
