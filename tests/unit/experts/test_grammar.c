/* Constrained output: what grammars and schemas accept and refuse, byte by byte; that a mask is exactly
 * the tokens whose bytes fit; that nothing generated from masks runs into a blind alley. */
#include "tests/unit/experts/unit.h"

#include <stdio.h>

#include "experts/grammar.h"

static struct grammar *schema(const char *text)
{
    struct grammar *g = NULL;
    struct err e = {0};
    if (grammar_compile_schema(text, strlen(text), "schema", &g, &e) != ERR_OK)
        fail_msg("%s: %s", text, e.msg);
    return g;
}

static struct grammar *gbnf(const char *text)
{
    struct grammar *g = NULL;
    struct err e = {0};
    if (grammar_compile_gbnf(text, strlen(text), &g, &e) != ERR_OK)
        fail_msg("%s: %s", text, e.msg);
    return g;
}

static bool matches(struct grammar_state *s, const char *text)
{
    grammar_reset(s);
    for (size_t i = 0; text[i] != 0; i++)
        if (!grammar_accept_bytes(s, text + i, 1))
            return false;
    return grammar_complete(s);
}

/* A grammar, then texts: those that begin with '+' fit, those that begin with '-' do not. */
#define TEXTS_MAX 24
struct table {
    const char *grammar, *text[TEXTS_MAX];
};

static void check_table(const struct table *t, struct grammar *(*compile)(const char *text))
{
    struct grammar *g = compile(t->grammar);
    struct grammar_state *s = grammar_state_open(g, NULL);
    grammar_unref(&g); /* the state has its own */
    for (size_t i = 0; i < TEXTS_MAX && t->text[i] != NULL; i++)
        if (matches(s, t->text[i] + 1) != (t->text[i][0] == '+'))
            fail_msg("%s: %s", t->grammar, t->text[i]);
    grammar_state_close(&s);
}

static void schemas_accept_and_refuse(void **state)
{
    static const struct table tables[] = {
        {"true", {"+1", "+\"a\"", "+[1, {\"a\":null}]", "+{}", "-", "- 1", "-1 ", "-[1,]", "-01", "+0.5e-3",
                  "-.5", "-1.", "+[]", "-[", "+{ \"a\":\n1,\"b\": 2 }", "-{  }", "-{\"a\" :1}", "-nul"}},
        {"{}", {"+true", "+-0", "-+1", "-tru"}},
        {"{\"type\":\"string\"}", {"+\"\"", "+\"\\n\\u00e9\\ud83d\\ude00\"", "-\"\\ud83d\"", "-\"\\ude00\"", "-\"\n\"",
                                   "-\"\\x\"", "+\"\xc3\xa9\"", "-\"\xc3\"", "-\"\xc0\x80\"", "-\"\xed\xa0\x80\"",
                                   "+\"\xf0\x9f\x98\x80\"", "-\"\xf5\x80\x80\x80\"", "-1", "-\"a", "-\"a\"b"}},
        {"{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}",
         {"-\"a\"", "+\"ab\"", "+\"abc\"", "-\"abcd\"", "+\"\xc3\xa9\xf0\x9f\x98\x80\"", "+\"\\n\\u0041\"",
          "-\"\\ud83d\\ude00\"", "+\"\\ud83d\\ude00x\""}},
        {"{\"type\":\"integer\"}", {"+0", "+-1", "+123456789012345678", "-1.0", "-00", "--0", "-1e3", "-"}},
        {"{\"type\":\"integer\",\"minimum\":0,\"maximum\":255}",
         {"+0", "+9", "+10", "+99", "+100", "+199", "+249", "+255", "-256", "-260", "-300", "-1000", "--1", "-00",
          "-01"}},
        {"{\"type\":\"integer\",\"minimum\":-12,\"exclusiveMaximum\":7}",
         {"+-12", "+-9", "+-1", "+0", "+6", "-7", "--13", "--20", "--0", "-10"}},
        {"{\"type\":\"integer\",\"minimum\":37}", {"-36", "+37", "+40", "+99", "+100", "-9", "--40", "+999999999999"}},
        {"{\"type\":\"integer\",\"maximum\":-5}", {"+-5", "+-10", "--4", "-0", "-5", "+-123456"}},
        {"{\"type\":\"integer\",\"minimum\":9223372036854775806}", {"+9223372036854775806", "+9223372036854775807",
                                                                  "-9223372036854775805", "-9223372036854775808"}},
        {"{\"type\":\"integer\",\"minimum\":0.5,\"maximum\":2.5}", {"-0", "+1", "+2", "-3"}},
        {"{\"type\":\"number\",\"minimum\":0,\"maximum\":1}",
         {"+0", "+1", "+0.5", "+0.125", "+1.0", "-1.1", "-1.01", "-2", "--0.5", "-0.", "+0.0"}},
        {"{\"type\":\"number\",\"minimum\":0.25,\"maximum\":12.5}",
         {"+0.25", "-0.24", "+0.251", "+9.99", "+12.50", "-12.51", "-12.501", "+12", "-13", "-0"}},
        {"{\"type\":\"number\",\"exclusiveMinimum\":0,\"exclusiveMaximum\":2}",
         {"-0", "-0.0", "+0.001", "+1", "+1.999", "-2", "-2.000"}},
        {"{\"type\":\"number\",\"minimum\":-1.5}", {"+-1.5", "+-1.49", "--1.51", "--2", "+3", "+100.25", "+-1", "+-0.05"}},
        {"{\"type\":\"number\"}", {"+-1.5e+10", "+0", "-1e", "-1.e5", "-1e+", "-01"}},
        {"{\"type\":[\"string\",\"null\"]}", {"+null", "+\"x\"", "-1", "-true"}},
        {"{\"type\":\"boolean\"}", {"+true", "+false", "-null", "-True"}},
        {"{\"type\":\"integer\",\"nullable\":true}", {"+null", "+4", "-\"4\""}},
        {"{\"enum\":[\"red\",1,null,{\"a\":[1,\"x\"]}]}", {"+\"red\"", "+1", "+null", "+{\"a\":[1,\"x\"]}", "-2", "-\"re\""}},
        {"{\"type\":\"string\",\"enum\":[\"a\\\"b\",5]}", {"+\"a\\\"b\"", "-5"}},
        {"{\"const\":\"\\u00e9\"}", {"+\"\xc3\xa9\"", "-\"e\""}},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"boolean\"},\"c\":{\"type\":\"null\"}},"
         "\"required\":[\"b\"]}",
         {"+{\"b\":true}", "+{\"a\":1,\"b\":true}", "+{\"a\":1, \"b\": false,\n\"c\":null }", "+{\"b\":true,\"c\":null}",
          "-{}", "-{\"a\":1}", "-{\"a\":1,\"c\":null}", "-{\"b\":true,\"a\":1}", "-{\"b\":true,}", "-{,\"b\":true}",
          "-{\"b\":true,\"d\":1}", "-{\"b\":true,\"b\":true}"}},
        {"{\"properties\":{\"a\":{\"type\":\"integer\"}},\"additionalProperties\":{\"type\":\"string\"}}",
         {"+{}", "+{\"a\":1}", "+{\"b\":\"x\"}", "+{\"a\":1,\"b\":\"x\",\"aa\":\"y\",\"\":\"z\"}", "-{\"a\":\"x\"}", "-{\"b\":1}",
          "-{\"\\u0061\":\"x\"}", "+{\"\xc3\xa9\":\"x\"}", "-{\"a\":1,\"a\":\"x\"}"}},
        {"{\"type\":\"object\",\"properties\":{\"abc\":{},\"abd\":{},\"\xc3\xa9\":{}},\"additionalProperties\":true}",
         {"+{\"ab\":1}", "+{\"abcd\":1}", "+{\"abe\":1}", "+{\"\xc3\xa8\":1}", "+{\"abc\":1}", "-{\"ab\":1,\"abc\":1}"}},
        {"{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\"}}", {"+{}", "+{\"x\\n\":1}", "-{\"x\":\"y\"}"}},
        {"{\"type\":\"object\",\"required\":[\"k\"]}", {"+{\"k\":[1]}", "-{}", "+{\"k\":1,\"l\":2}", "-{\"l\":2}"}},
        {"{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":1,\"maxItems\":3}",
         {"-[]", "+[1]", "+[1,2]", "+[ 1, 2,\n3 ]", "-[1,2,3,4]", "-[\"a\"]", "-[1,,2]", "-[,1]"}},
        {"{\"type\":\"array\",\"items\":{\"type\":\"null\"},\"minItems\":2}", {"-[null]", "+[null,null]", "+[null,null,null,null]"}},
        {"{\"type\":\"array\",\"maxItems\":0}", {"+[]", "+[ ]", "-[1]"}},
        {"{\"prefixItems\":[{\"type\":\"integer\"},{\"type\":\"string\"}],\"items\":{\"type\":\"null\"}}",
         {"+[]", "+[1]", "+[1,\"a\"]", "+[1,\"a\",null,null]", "-[\"a\"]", "-[1,null]", "-[1,\"a\",1]"}},
        {"{\"prefixItems\":[{\"type\":\"integer\"}],\"items\":false,\"minItems\":1}", {"+[1]", "-[]", "-[1,2]"}},
        {"{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}]}",
         {"+1", "+[1,[2,[]]]", "-\"a\"", "-[\"a\"]", "-[[1]"}},
        {"{\"oneOf\":[{\"type\":\"null\"},{\"const\":3}]}", {"+null", "+3", "-4"}},
        {"{\"oneOf\":[{\"type\":\"integer\",\"maximum\":3,\"minimum\":2},{\"type\":\"number\",\"enum\":[4.5]}]}",
         {"+3", "+4.5", "-4"}},
        {"{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"}},\"required\":[\"a\"]},"
         "{\"type\":\"object\",\"properties\":{\"b\":{\"type\":\"null\"}},\"required\":[\"b\"]}]}",
         {"+{\"a\":null}", "+{\"b\":null}", "-{}"}},
        {"{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"x\"},\"n\":{\"type\":\"null\"}},"
         "\"required\":[\"k\"]},{\"type\":\"object\",\"properties\":{\"k\":{\"enum\":[\"y\"]}},\"required\":[\"k\"]}],"
         "\"discriminator\":{}}",
         {"+{\"k\":\"x\"}", "+{\"k\":\"y\"}", "-{\"k\":\"z\"}"}},
        {"{\"allOf\":[{\"type\":[\"integer\",\"string\"]},{\"type\":\"number\",\"minimum\":3},{\"maximum\":5}]}",
         {"-2", "+3", "+5", "-6", "-\"a\""}},
        {"{\"allOf\":[{\"$ref\":\"#/$defs/a\"},{\"$ref\":\"#/$defs/b\"}],\"$defs\":{\"a\":{\"properties\":{\"x\":{\"type\":\"integer\"}},"
         "\"required\":[\"x\"]},\"b\":{\"properties\":{\"y\":{\"type\":\"null\"}},\"required\":[\"y\"]}}}",
         {"+{\"x\":1,\"y\":null}", "-{\"x\":1}", "-{\"y\":null}"}},
        {"{\"type\":\"object\",\"properties\":{\"x\":{\"type\":\"integer\"},\"y\":{\"type\":\"integer\"}},"
         "\"anyOf\":[{\"required\":[\"x\"]},{\"required\":[\"y\"]}]}", {"+{\"x\":1}", "+{\"y\":1}", "+{\"x\":1,\"y\":2}", "-{}"}},
        {"{\"$ref\":\"#/$defs/node\",\"$defs\":{\"node\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"},"
         "\"next\":{\"$ref\":\"#/$defs/node\"}},\"required\":[\"v\"]}}}",
         {"+{\"v\":1}", "+{\"v\":1,\"next\":{\"v\":2,\"next\":{\"v\":3}}}", "-{\"next\":{\"v\":2}}", "-{\"v\":1,\"next\":{}}"}},
        {"{\"$ref\":\"#/$defs/a~1b%25\",\"$defs\":{\"a/b%\":{\"type\":\"null\"}}}", {"+null", "-1"}},
        {"{\"properties\":{\"a\":false,\"b\":{\"type\":\"null\"}}}", {"+{}", "+{\"b\":null}", "-{\"a\":1}"}},
        {"{\"type\":\"string\",\"pattern\":\"^[a-c]{2,3}$\"}", {"+\"ab\"", "+\"abc\"", "-\"a\"", "-\"abcd\"", "-\"xab\""}},
        {"{\"type\":\"string\",\"pattern\":\"b+\"}", {"+\"b\"", "+\"abbc\"", "-\"a\"", "-\"\"", "+\"\\n\\u0041b\""}},
        {"{\"type\":\"string\",\"pattern\":\"^(?:x|\\\\d\\\\.\\\\w)*$|^\\\\\\\\q\\\"$\"}",
         {"+\"\"", "+\"xx1._x\"", "-\"1\"", "+\"\\\\q\\\"\"", "-\"q\""}},
        {"{\"type\":\"string\",\"pattern\":\"^[^a-z\\\\n]\\\\u00e9.$\"}", {"+\"A\xc3\xa9\xf0\x9f\x98\x80\"", "-\"a\xc3\xa9x\"", "-\"\\n\xc3\xa9x\"", "+\"\\t\xc3\xa9x\""}},
        {"{\"format\":\"date\"}", {"+\"2024-02-28\"", "-\"2024-02-30\"", "-\"2024-13-01\"", "+\"1999-12-31\"", "-\"99-1-1\""}},
        {"{\"format\":\"date-time\"}", {"+\"2024-01-31T23:59:59Z\"", "+\"2024-01-31T00:00:00.5+02:00\"", "-\"2024-01-31T24:00:00Z\"", "-\"2024-01-31T00:00:00\""}},
        {"{\"format\":\"uuid\"}", {"+\"123e4567-e89b-12d3-a456-426614174000\"", "-\"123e4567e89b12d3a456426614174000\""}},
        {"{\"format\":\"ipv4\"}", {"+\"255.0.10.199\"", "-\"256.0.0.1\"", "-\"1.2.3\""}},
        {"{\"format\":\"email\"}", {"+\"a.b@c.de\"", "-\"a@b\"", "-\"@c.de\"", "-\"a.@c.de\""}},
    };
    for (size_t i = 0; i < BASE_COUNT(tables); i++)
        check_table(&tables[i], schema);
}

static void gbnf_accepts_and_refuses(void **state)
{
    static const struct table tables[] = {
        {"root ::= \"a\" | \"b\" \"c\"", {"+a", "+bc", "-b", "-ab", "-"}},
        {"# words\nroot ::= word (\" \" word)* \".\"?\nword ::= [a-z]+ | num # end\nnum ::= [0-9]{2,3}\n",
         {"+ab", "+a b.", "+12 x", "-1", "-1234", "-a  b", "-A"}},
        {"root ::= (\n \"x\"\n | \"y\" )+ |\n \"z\"", {"+xyx", "+z", "-", "-zz"}},
        {"root ::= \"(\" root \")\" | \"\"", {"+", "+()", "+((()))", "-(", "-())"}},
        {"root ::= [^\\x00-\\x1f\"]{2}", {"+ab", "+\xc3\xa9\xf0\x9f\x98\x80", "-a\"", "-a", "-a\xff", "-a\xc3"}},
        {"root ::= \"\\u00e9\\\"\\\\\\n\" .", {"+\xc3\xa9\"\\\n\xe2\x82\xac", "-\xc3\xa9\"\\\n"}},
        {"root ::= (\"a\"*)* \"b\"", {"+b", "+aaab", "-a"}},
        {"root ::= (a b)? \"c\"\na ::= \"\"\nb ::= \"x\" | a", {"+c", "+xc", "-xxc"}},
        {"root ::= [-a\\]]+", {"+-a]", "-b"}},
        {"root ::= \"a\"{2}\r\n", {"+aa", "-a", "-aaa"}},
        {"root ::= item+\nitem ::= \"- \" [^\\n]+ \"\\n\"", {"+- a\n- b\n", "-- a", "-"}},
    };
    for (size_t i = 0; i < BASE_COUNT(tables); i++)
        check_table(&tables[i], gbnf);
}

static void wrong_schemas_are_named(void **state)
{
    static const struct {
        const char *schema, *param;
        enum err_code code;
    } cases[] = {
        {"{", "schema", ERR_INVALID},
        {"5", "schema", ERR_INVALID},
        {"{\"properties\":{\"a\":{\"type\":\"string\",\"pattern\":\"(?=x)\"}}}", "schema.properties.a.pattern", ERR_UNSUPPORTED},
        {"{\"pattern\":\"a**\"}", "schema.pattern", ERR_UNSUPPORTED},
        {"{\"pattern\":\"(a\"}", "schema.pattern", ERR_INVALID},
        {"{\"pattern\":\"a)\"}", "schema.pattern", ERR_INVALID},
        {"{\"pattern\":\"[a\"}", "schema.pattern", ERR_INVALID},
        {"{\"pattern\":\"a\\\\b\"}", "schema.pattern", ERR_UNSUPPORTED},
        {"{\"pattern\":\"a^b\"}", "schema.pattern", ERR_UNSUPPORTED},
        {"{\"pattern\":\"(a)\\\\1\"}", "schema.pattern", ERR_UNSUPPORTED},
        {"{\"pattern\":\"a\",\"minLength\":2}", "schema.minLength", ERR_UNSUPPORTED},
        {"{\"format\":\"hostname\"}", "schema.format", ERR_UNSUPPORTED},
        {"{\"type\":\"object\",\"patternProperties\":{}}", "schema.patternProperties", ERR_UNSUPPORTED},
        {"{\"anyOf\":[{\"type\":\"null\"},{\"not\":{}}]}", "schema.anyOf[1].not", ERR_UNSUPPORTED},
        {"{\"items\":{\"uniqueItems\":true}}", "schema.items.uniqueItems", ERR_UNSUPPORTED},
        {"{\"type\":\"integer\",\"multipleOf\":3}", "schema.multipleOf", ERR_UNSUPPORTED},
        {"{\"type\":\"thing\"}", "schema.type", ERR_INVALID},
        {"{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}", "schema.oneOf", ERR_UNSUPPORTED},
        {"{\"oneOf\":[{\"const\":3},{\"const\":3.0}]}", "schema.oneOf", ERR_UNSUPPORTED},
        {"{\"oneOf\":[{\"type\":\"string\",\"maxLength\":3},{\"type\":\"string\",\"minLength\":3}]}",
         "schema.oneOf", ERR_UNSUPPORTED},
        {"{\"items\":{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"a\":{}}},{\"type\":\"object\","
         "\"properties\":{\"b\":{}},\"required\":[\"b\"]}]}}",
         NULL, ERR_UNSUPPORTED},
        {"{\"type\":\"string\",\"maxLength\":-1}", "schema.maxLength", ERR_INVALID},
        {"{\"type\":\"integer\",\"minimum\":\"3\"}", "schema.minimum", ERR_INVALID},
        {"{\"type\":\"integer\",\"minimum\":3,\"maximum\":2}", "schema", ERR_INVALID},
        {"{\"type\":\"number\",\"minimum\":0.12345678}", "schema.minimum", ERR_UNSUPPORTED},
        {"{\"$ref\":\"#/$defs/x\"}", "schema.$ref", ERR_INVALID},
        {"{\"$ref\":\"http://x/y\"}", "schema.$ref", ERR_UNSUPPORTED},
        {"{\"$ref\":\"#\"}", "schema", ERR_INVALID},
        {"{\"allOf\":[{\"$ref\":\"#\"},{\"$ref\":\"#\"}]}", NULL, ERR_INVALID},
        {"{\"allOf\":[{\"pattern\":\"a\"},{\"pattern\":\"b\"}]}", "schema.pattern", ERR_UNSUPPORTED},
        {"{\"required\":[\"a\"],\"additionalProperties\":false}", "schema.required", ERR_INVALID},
        {"{\"enum\":[]}", "schema", ERR_INVALID},
        {"{\"enum\":[1],\"minimum\":0}", "schema.minimum", ERR_UNSUPPORTED},
        {"false", "schema", ERR_INVALID},
        {"{\"type\":\"string\",\"minLength\":900000}", "schema", ERR_INVALID},
        {"{\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", "schema", ERR_INVALID},
    };
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct grammar *g = NULL;
        struct err e = {0};
        enum err_code code = grammar_compile_schema(cases[i].schema, strlen(cases[i].schema), "schema", &g, &e);
        if (code != cases[i].code || e.code != code || (cases[i].param && strcmp(e.param, cases[i].param) != 0))
            fail_msg("%s: code %s, param '%s', %s", cases[i].schema, err_code_name(code), e.param, e.msg);
        assert_null(g);
    }
}

static void wrong_gbnf_is_named(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "'root'"},
        {"a ::= \"x\"", "'root'"},
        {"root ::= a", "'a'"},
        {"root ::= root \"a\" | \"b\"", "begins with itself"},
        {"root ::= a \"x\" | \"y\"\na ::= b?\nb ::= root", "begins with itself"},
        {"root ::= \"a\nb\"", "closing quote on line 1"},
        {"root ::= \"a\"\nroot ::= \"b\"", "second rule"},
        {"root = \"a\"", "'::='"},
        {"root ::= (\"a\"", "')'"},
        {"root ::= \"a\")", "'('"},
        {"root ::= [z-a]", "reversed"},
        {"root ::= \"a\"{3,2}", "{m,n}"},
        {"root ::= \"\\q\"", "escape"},
        {"root ::= *", "no name"},
        {"root ::= [a-z]{90000}{90000}{90000}{90000}{90000}", "states"},
        {"root ::= a\na ::= \"x\" a", "no text"},
    };
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct grammar *g = NULL;
        struct err e = {0};
        assert_int_equal(grammar_compile_gbnf(cases[i].text, strlen(cases[i].text), &g, &e), ERR_INVALID);
        if (strstr(e.msg, cases[i].says) == NULL)
            fail_msg("%s: %s", cases[i].text, e.msg);
        assert_string_equal(e.param, "grammar");
    }
}

/* ---- masks ------------------------------------------------------------------------------------- */

static struct tokenizer *tiny_tokenizer(void)
{
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    struct err e = {0};
    char *path = unit_data("tiny/tiny-llama-q8_0.gguf");
    unit_ok(gguf_open(path, &g, &e), &e);
    unit_ok(tokenizer_open(g, &t, &e), &e);
    gguf_close(&g);
    free(path);
    return t;
}

static bool brute(struct grammar_state *probe, const struct grammar_vocab *v, const char *text, size_t len,
                  int32_t token)
{
    size_t n = 0;
    grammar_reset(probe);
    assert_true(grammar_accept_bytes(probe, text, len));
    if (grammar_vocab_is_end(v, token))
        return grammar_complete(probe);
    const char *bytes = grammar_vocab_bytes(v, token, &n);
    return bytes != NULL && n > 0 && grammar_accept_bytes(probe, bytes, n);
}

/* Walk at random along masks; now and then compare the mask with every token tried by itself. */
static void walk_masks(struct grammar *g, const struct tokenizer *t, const struct grammar_vocab *v,
                       struct rng *r, unsigned steps, const char *what)
{
    struct grammar_state *s = grammar_state_open(g, v), *probe = grammar_state_open(g, v);
    struct buf text = {0};
    buf_append(&text, "", 0);
    for (unsigned i = 0; i < steps; i++) {
        uint32_t count;
        const uint32_t *bits = grammar_mask(s, &count);
        if (count == 0)
            fail_msg("%s: nothing may follow '%.*s'", what, (int)text.len, text.data);
        int32_t chosen = -1;
        uint64_t at = rng_below(r, count);
        for (int32_t k = 0; k < tokenizer_vocab(t); k++) {
            bool set = bits[k / 32] >> (k % 32) & 1;
            if (i % 7 == 0 && set != brute(probe, v, text.data, text.len, k))
                fail_msg("%s: token %d after '%.*s' is %d", what, k, (int)text.len, text.data, set);
            if (set && at-- == 0)
                chosen = k;
        }
        assert_true(grammar_accept(s, chosen));
        if (grammar_vocab_is_end(v, chosen))
            break;
        size_t n;
        const char *bytes = grammar_vocab_bytes(v, chosen, &n);
        buf_append(&text, bytes, n);
    }
    buf_done(&text);
    grammar_state_close(&s);
    grammar_state_close(&probe);
}

static void masks_equal_brute_force(void **state)
{
    static const char *const schemas[] = {
        "true", "{\"type\":\"string\",\"maxLength\":6}", "{\"type\":\"number\",\"minimum\":-3.5,\"maximum\":120}",
        "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":\"integer\",\"minimum\":0}},"
        "\"required\":[\"age\"],\"additionalProperties\":{\"enum\":[\"x\",\"y\"]}}",
        "{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}", "{\"format\":\"date-time\"}",
        "{\"pattern\":\"^(the|of|a)( [a-z]+)*$\"}"};
    uint64_t seed = unit_seed();
    struct rng r;
    struct tokenizer *t = tiny_tokenizer();
    struct grammar_vocab *v = grammar_vocab_open(t);
    rng_init(&r, seed);
    for (size_t i = 0; i < BASE_COUNT(schemas); i++) {
        struct grammar *g = schema(schemas[i]);
        for (unsigned round = 0; round < 6; round++)
            walk_masks(g, t, v, &r, 120, schemas[i]);
        grammar_unref(&g);
    }
    struct grammar *g = gbnf("root ::= (\"- \" [^\\n]{1,9} \"\\n\")+");
    walk_masks(g, t, v, &r, 200, "list");
    grammar_unref(&g);
    grammar_vocab_close(&v);
    tokenizer_close(&t);
}

/* At the greatest depth everything that was opened can still be closed. */
static void depth_ends_in_no_blind_alley(void **state)
{
    struct grammar *g = NULL;
    struct err e = {0};
    unit_ok(grammar_compile_json_object(&g, &e), &e);
    struct grammar_state *s = grammar_state_open(g, NULL);
    unsigned levels = 0;
    while (grammar_accept_bytes(s, "{\"a\":", 5))
        levels++;
    assert_in_range(levels, 60, 250);
    /* The last that fits may open one more or not, but must go on to an end. */
    bool closed = grammar_accept_bytes(s, "1", 1);
    if (!closed)
        closed = grammar_accept_bytes(s, "{}", 2);
    assert_true(closed);
    for (unsigned i = 0; i < levels; i++)
        assert_true(grammar_accept_bytes(s, "}", 1));
    assert_true(grammar_complete(s));
    assert_false(grammar_accept_bytes(s, " ", 1));
    grammar_state_close(&s);
    grammar_unref(&g);
}

/* More states than the tables hold: they are emptied on the way and nothing is lost. */
static void tables_may_fill_up(void **state)
{
    struct grammar *g = schema("{\"type\":\"string\",\"minLength\":9000,\"maxLength\":9001}");
    struct grammar_state *s = grammar_state_open(g, NULL);
    assert_true(grammar_accept_bytes(s, "\"", 1));
    for (unsigned i = 0; i < 9000; i++) {
        assert_false(grammar_complete(s));
        assert_true(grammar_accept_bytes(s, "x", 1));
    }
    assert_true(grammar_accept_bytes(s, "x", 1));
    assert_false(grammar_accept_bytes(s, "x", 1));
    assert_true(grammar_accept_bytes(s, "\"", 1));
    assert_true(grammar_complete(s));
    grammar_state_close(&s);
    grammar_unref(&g);
}

/* The shortest rest is what it says, and towards a limit only tokens come that leave it in reach. */
static void an_answer_can_be_brought_to_its_end(void **state)
{
    struct tokenizer *t = tiny_tokenizer();
    struct grammar_vocab *v = grammar_vocab_open(t);
    struct grammar *g = schema("{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\"},\"b\":"
                               "{\"type\":\"array\",\"items\":{\"type\":\"integer\"}}},\"required\":[\"a\",\"b\"]}");
    for (uint32_t limit = 4; limit < 40; limit++) {
        struct grammar_state *s = grammar_state_open(g, v);
        struct rng r;
        uint32_t left = limit;
        rng_init(&r, limit);
        assert_int_equal(grammar_state_bytes(s, grammar_state_now(s)), strlen("{\"a\":\"\",\"b\":[]}"));
        for (; left > 0 && !grammar_complete(s); left--) {
            uint32_t count, at;
            const uint32_t *bits = grammar_mask_within(s, left > 1 ? left - 1 : 0, &count);
            assert_true(count > 0);
            at = (uint32_t)(rng_f64(&r) * count);
            for (int32_t id = 0;; id++)
                if ((bits[id / 32] >> (id % 32) & 1) != 0 && at-- == 0) {
                    assert_true(grammar_accept(s, id));
                    break;
                }
        }
        /* As many tokens as the shortest text has bytes are always enough. */
        assert_true(grammar_complete(s) || limit < strlen("{\"a\":\"\",\"b\":[]}"));
        grammar_state_close(&s);
    }
    grammar_unref(&g);
    grammar_vocab_close(&v);
    tokenizer_close(&t);
}

/* Text of all sorts must be refused or compiled, never crash; most of it is nearly right. */
static void mutated_texts_are_survived(void **state)
{
    static const char *const texts[] = {
        "root ::= word (\" \" word)* \".\"?\nword ::= [a-z]+ | num\nnum ::= [0-9]{2,3}\n",
        "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\",\"minimum\":-3,\"maximum\":12.5},\"b\":{\"$ref\":\"#\"}},"
        "\"required\":[\"a\"],\"anyOf\":[{\"required\":[\"b\"]},true]}",
        "{\"pattern\":\"^(?:a|[^b-d\\\\s]{1,3})+\\\\.x?$\"}",
        "{\"allOf\":[{\"items\":{\"enum\":[1,\"a\"]},\"prefixItems\":[{\"const\":1}]},{\"minItems\":2}],\"nullable\":true}"};
    struct rng r;
    rng_init(&r, unit_seed());
    for (unsigned i = 0; i < 4000; i++) {
        char text[400];
        struct grammar *g = NULL;
        struct err e = {0};
        const char *from = texts[i % BASE_COUNT(texts)];
        size_t len = strlen(from);
        memcpy(text, from, len);
        for (uint64_t k = rng_below(&r, 4) + 1; k > 0; k--) {
            size_t at = rng_below(&r, len), to = rng_below(&r, len);
            text[at] = rng_below(&r, 2) ? text[to] : (char)rng_below(&r, 256);
        }
        enum err_code code = from[0] == '{' ? grammar_compile_schema(text, len, "schema", &g, &e)
                                            : grammar_compile_gbnf(text, len, &g, &e);
        if (code != ERR_OK) {
            assert_int_equal(code, e.code);
            assert_true(e.msg[0] != 0);
            continue;
        }
        struct grammar_state *s = grammar_state_open(g, NULL);
        grammar_accept_bytes(s, "{\"a\":1", 6);
        grammar_state_close(&s);
        grammar_unref(&g);
    }
}

/* What would cost minutes is refused or bounded: the threads serve others too. */
static void hostile_grammars_are_bounded(void **state)
{
    struct buf text = {0};
    struct grammar *g = NULL;
    struct err e = {0};
    buf_puts(&text, "{\"$ref\":\"#/$defs/d0\",\"$defs\":{");
    for (unsigned i = 0; i < 40; i++) /* 2^40 merges */
        buf_printf(&text, "\"d%u\":{\"type\":\"object\",\"anyOf\":[{\"$ref\":\"#/$defs/d%u\"},{\"$ref\":\"#/$defs/d%u\"}]},", i,
                   i + 1, i + 1);
    buf_puts(&text, "\"d40\":{}}}");
    assert_int_equal(grammar_compile_schema(text.data, text.len, "schema", &g, &e), ERR_INVALID);
    buf_done(&text);
    struct tokenizer *t = tiny_tokenizer();
    struct grammar_vocab *v = grammar_vocab_open(t);
    g = gbnf("root ::= ([a-z ]{0,900} [a-z]{0,900} [ -~]{0,900}){0,50}");
    struct grammar_state *s = grammar_state_open(g, v);
    uint64_t start = clock_thread_ns();
    for (unsigned i = 0; i < 3; i++) {
        uint32_t count;
        grammar_mask(s, &count);
        assert_true(count > 0);
        assert_true(grammar_accept_bytes(s, "a", 1));
    }
    /* Without bounds this takes minutes; the limit leaves room for sanitizers. */
    assert_true(clock_thread_ns() - start < 60ULL * 1000000000);
    grammar_state_close(&s);
    grammar_unref(&g);
    grammar_vocab_close(&v);
    tokenizer_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schemas_accept_and_refuse),
        cmocka_unit_test(gbnf_accepts_and_refuses),
        cmocka_unit_test(wrong_schemas_are_named),
        cmocka_unit_test(wrong_gbnf_is_named),
        cmocka_unit_test(an_answer_can_be_brought_to_its_end),
        cmocka_unit_test(masks_equal_brute_force),
        cmocka_unit_test(depth_ends_in_no_blind_alley),
        cmocka_unit_test(tables_may_fill_up),
        cmocka_unit_test(mutated_texts_are_survived),
        cmocka_unit_test(hostile_grammars_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
