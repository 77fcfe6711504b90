package config

import "github.com/goccy/go-yaml/token"

// maxDepth is how many lists and mappings may stand in one another. No file of ours
// has more than eight, and the parser takes memory by the square of their number.
const maxDepth = 64

// tooDeep returns the token with which a file nests deeper than maxDepth, or nil. The
// lexer, which has made the tokens, takes memory by the length of the file alone.
func tooDeep(tokens token.Tokens) *token.Token {
	flow := 0
	var blocks []int // columns at which blocks begin that are not over
	for _, t := range tokens {
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow = max(flow-1, 0)
		case token.SequenceEntryType, token.MappingKeyType:
			blocks = within(blocks, t)
		case token.MappingValueType:
			if t.Prev != nil {
				blocks = within(blocks, t.Prev)
			}
		}
		if flow > maxDepth || len(blocks) > maxDepth {
			return t
		}
	}
	return nil
}

// within ends the blocks that begin at the column of a token or right of it, and
// begins one there.
func within(blocks []int, t *token.Token) []int {
	column := tokenPosition(t).column
	for len(blocks) > 0 && blocks[len(blocks)-1] >= column {
		blocks = blocks[:len(blocks)-1]
	}
	return append(blocks, column)
}
