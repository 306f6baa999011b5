/* The template language, construct by construct. Every expected text is what jinja2 3.1.6 gives
 * with the settings of the Python chat code. The variables are those of text.c. */
#include "tests/unit/experts/text/text.h"

static void arithmetic_follows_python(void **state)
{
    text_gives("{{ 1 + 2 * 3 - 4 / 2 }}", "5.0");
    text_gives("{{ 7 // 2 }}|{{ -7 // 2 }}|{{ 7 % -3 }}|{{ -7 % 3 }}", "3|-4|-2|2");
    text_gives("{{ 7.5 // 2 }}|{{ -7.5 // 2 }}|{{ -7.5 % 2 }}", "3.0|-4.0|0.5");
    text_gives("{{ 2 ** 10 }}|{{ 2 ** -1 }}|{{ 2 ** 3 ** 2 }}|{{ -2 ** 2 }}", "1024|0.5|64|4");
    text_gives("{{ 1e16 }}|{{ 1e15 }}|{{ 0.1 + 0.2 }}|{{ 1e-5 }}|{{ 5e-324 }}|{{ -0.0 }}",
               "1e+16|1000000000000000.0|0.30000000000000004|1e-05|5e-324|-0.0");
    text_gives("{{ 1 / 3 }}|{{ 100 / 10 }}|{{ 1e308 * 10 }}|{{ 123456789012345680.0 }}",
               "0.3333333333333333|10.0|inf|1.2345678901234568e+17");
    text_gives("{{ true + 1 }}|{{ -true }}|{{ 'ab' * 3 }}|{{ 2 * [1] }}|{{ 'x' * -1 }}",
               "2|-1|ababab|[1, 1]|");
    text_gives("{{ 0x1F + 0o17 + 0b11 + 1_000 }}", "1049");
    text_gives("{{ [1, 2] + [3] }}|{{ ((1, 2) + (3,)) }}", "[1, 2, 3]|(1, 2, 3)");
    text_gives("{{ 10 - 2 - 3 }}|{{ 2 * 3 }}|{{ 4 }}|{{ -1 | abs }}|{{ (-5) | abs + 1 }}",
               "5|6|4|1|6");
}

static void logic_gives_operands(void **state)
{
    text_gives("{{ 0 or 'x' }}", "x");
    text_gives("{{ none and 1 }}", "None");
    text_gives("{{ '' or none or [] or 'last' }}", "last");
    text_gives("{{ not not 1 }}|{{ (not 1 in [2]) }}", "True|True");
    text_gives("{{ 1 or 0 and 0 }}|{{ (1 or 0) and 0 }}", "1|0");
    text_gives("{{ 'y' if t else 'n' }}", "y");
    text_gives("{{ ('y' if n) }}|{{ ('a' if n else 'b' if n else 'c') }}", "|c");
    text_gives("{{ nope or 5 }}", "5");
    text_gives("{{ nope and 5 }}", "");
    text_gives("{{ not nope }}", "True");
}

static void comparisons_chain(void **state)
{
    text_gives("{{ 1 < 2 < 3 }}|{{ (1 < 3 < 2) }}|{{ (1 < 2 == true) }}", "True|False|False");
    text_gives("{{ 1 == 1.0 }}|{{ ('1' == 1) }}|{{ ([] == ()) }}|{{ (nope == nope) }}|{{ (nope =="
               " none) }}",
               "True|False|False|True|False");
    text_gives("{{ [1, 2] < [1, 3] }}|{{ ((1, 2) < (1, 2, 3)) }}|{{ ('a' < 'b') }}",
               "True|True|True");
    text_gives("{{ 'ell' in s }}|{{ (3 in l) }}|{{ ('b' in d) }}|{{ (9 not in l) }}|{{ (1 in nope"
               ") }}",
               "True|True|True|True|False");
    text_gives("{{ {'a': 1, 'b': 2} == {'b': 2, 'a': 1} }}", "True");
    text_gives("{{ 1.0 in [1] }}|{{ (true in [1]) }}|{{ (none in [none]) }}", "True|True|True");
}

static void subscripts_and_slices(void **state)
{
    text_gives("{{ l[0] }}|{{ l[-1] }}|{{ l[5] }}|{{ l['x'] }}", "3|2||");
    text_gives("{{ 'abcdef'[1:5:2] }}|{{ 'abcdef'[-3:-1] }}|{{ 'abcdef'[5:1:-1] }}|{{ 'abcdef'[10"
               ":] }}|{{ 'abcdef'[:-10] }}",
               "bd|de|fedc||");
    text_gives("{{ uni[1:4] }}|{{ uni[::-1] }}|{{ uni[-1] }}|{{ uni[6] }}",
               "\303\251ll|\360\237\230\200\346\227\245 oll\303\251h|\360\237\230\200|\346\227"
               "\245");
    text_gives("{{ [1, 2, 3][::-1] }}|{{ (1, 2, 3)[1:] }}|{{ range(5)[1:3] | list }}",
               "[3, 2, 1]|(2, 3)|[1, 2]");
    text_gives("{{ d.b }}|{{ d['b'] }}|{{ d.a[1].k }}|{{ d.a.1.k }}|{{ d.nope }}|{{ d['nope'] }}",
               "1|1|v|v||");
    text_gives("{{ d['keys']() | list }}", "['b', 'a', 'z']");
    text_gives("{{ messages[1:][0].role }}|{{ messages[-1]['content'] }}|{{ messages.0.role }}",
               "user|A|system");
    text_gives("{{ {1: 'a', 1.5: 'b', none: 'c', (1, 2): 'd'}[(1, 2)] }}", "d");
}

static void values_print_as_in_python(void **state)
{
    text_gives("{{ [1, 2.0, none, true, 'x', (1,), {}, []] }}",
               "[1, 2.0, None, True, 'x', (1,), {}, []]");
    text_gives("{{ [\"it's\", 'say \"hi\"', \"tab\\t nl\\n bs\\\\ \\x07 \\u200b \\u00e9\"] }}",
               "[\"it's\", 'say \"hi\"', 'tab\\t nl\\n bs\\\\ \\x07 \\u200b \303\251']");
    text_gives("{{ {'k': 1, 'j': [none, {'a': 1.5}]} }}", "{'k': 1, 'j': [None, {'a': 1.5}]}");
    text_gives("{{ (1, 'a') }}|{{ (1,) }}|{{ () }}", "(1, 'a')|(1,)|()");
    text_gives("{{ range(3) }}|{{ range(1, 5, 2) }}", "range(0, 3)|range(1, 5, 2)");
    text_gives("{{ d.items() }}|{{ d.keys() }}",
               "dict_items([('b', 1), ('a', [1, {'k': 'v'}]), ('z', None)])|dict_keys(['b', 'a', "
               "'z'])");
    text_gives("{{ nope }}|{{ none }}|{{ true }}", "|None|True");
    text_gives("{{ \"a\" \"b\" 'c' }}", "abc");
    text_gives("{{ 'a' * 2 + 'c' }}", "aac");
    text_gives("{{ '\\u65e5\\U0001f600\\x41\\101' }}", "\346\227\245\360\237\230\200AA");
}

static void filters_on_text(void **state)
{
    text_gives("{{ '  a ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ s | upper | lower | capitalize }"
               "}",
               "a|a|Hello, world");
    text_gives("{{ \"hello wORLD it's foo-bar (baz)\" | title }}",
               "Hello World It's Foo-Bar (Baz)");
    text_gives("{{ 'a\\nb\\n\\nc' | indent(2) }}|{{ 'a\\nb' | indent('> ', true) }}|{{ 'a\\n\\nb'"
               " | indent(1, blank=true) }}",
               "a\n  b\n\n  c|> a\n> b|a\n \n b");
    text_gives("{{ 'hello big world out there' | truncate(12) }}|{{ 'hello big world out there' |"
               " truncate(12, true) }}|{{ 'abcdefghij' | truncate(6) }}",
               "hello...|hello big...|abcdefghij");
    text_gives("{{ 'a b c' | wordcount }}|{{ \"it's h\\u00e9\" | wordcount }}|{{ 'x' | center(5) "
               "}}",
               "3|3|  x  ");
    text_gives("{{ s | replace('l', 'L') }}|{{ s | replace('l', 'L', 1) }}|{{ 123 | replace(2, 'x"
               "') }}",
               "HeLLo, WorLd|HeLlo, World|1x3");
    text_gives("{{ \"<a href='x'>&\\\"\" | e }}|{{ '<a>' | e | e }}|{{ ('<a>' | safe) + '<b>' }}|"
               "{{ '<p>x  <b>y</b></p>' | striptags }}",
               "&lt;a href=&#39;x&#39;&gt;&amp;&#34;|&lt;a&gt;|<a>&lt;b&gt;|x y");
    text_gives("{{ 'a b/c?d=\\u00e9' | urlencode }}|{{ {'a': 1, 'b c': 'x/y'} | urlencode }}",
               "a%20b/c%3Fd%3D%C3%A9|a=1&b+c=x%2Fy");
    text_gives("{{ '%s, %05.2f' | format('a', 2.5) }}|{{ '%(x)s' | format(x=5) }}", "a, 02.50|5");
    text_gives("{{ 'stra\\u00dfe' | upper }}|{{ '\\u0391\\u03a3' | lower }}|{{ '\\u00c9COLE'.lowe"
               "r() }}",
               "STRASSE|\316\261\317\202|\303\251cole");
    text_gives("{{ {'class': 'a', 'id': none} | xmlattr }}", " class=\"a\"");
}

static void filters_on_numbers(void **state)
{
    text_gives("{{ '12' | int + 1 }}|{{ '12.7' | int }}|{{ 'abc' | int(5) }}|{{ '0x1f' | int(0, 1"
               "6) }}|{{ none | int }}",
               "13|12|5|31|0");
    text_gives("{{ '1.5' | float }}|{{ 'abc' | float(1.5) }}|{{ '1e3' | float }}|{{ 3 | float }}",
               "1.5|1.5|1000.0|3.0");
    text_gives("{{ 2.5 | round }}|{{ 3.5 | round }}|{{ 2.567 | round(2) }}|{{ 2.561 | round(2, 'c"
               "eil') }}|{{ 25 | round(-1) }}|{{ 2.5 | round | int }}",
               "2.0|4.0|2.57|2.57|20|2");
    text_gives("{{ neg | abs }}|{{ 1000 | filesizeformat }}|{{ 1536 | filesizeformat(true) }}|{{ "
               "1 | filesizeformat }}",
               "3|1.0 kB|1.5 KiB|1 Byte");
}

static void filters_on_sequences(void **state)
{
    text_gives("{{ l | first }}|{{ l | last }}|{{ el | first }}|{{ 'abc' | last }}|{{ l | length "
               "}}|{{ nope | length }}",
               "3|2||c|3|0");
    text_gives("{{ l | sort }}|{{ l | sort(reverse=true) }}|{{ ['b', 'A', 'c'] | sort }}|{{ ['b',"
               " 'A'] | sort(case_sensitive=true) }}",
               "[1, 2, 3]|[3, 2, 1]|['A', 'b', 'c']|['A', 'b']");
    text_gives("{{ l | sum }}|{{ l | max }}|{{ l | min }}|{{ [[1], [2]] | sum(start=[]) }}",
               "6|3|1|[1, 2]");
    text_gives("{{ messages | sort(attribute='role') | map(attribute='role') | join(',') }}",
               "assistant,system,user");
    text_gives("{{ messages | selectattr('role', 'eq', 'user') | map(attribute='content') | list "
               "}}",
               "['U']");
    text_gives("{{ messages | rejectattr('role', 'in', ['user', 'system']) | list | length }}",
               "1");
    text_gives("{{ messages | map(attribute='zip', default='-') | join }}", "---");
    text_gives("{{ range(10) | select('even') | list }}|{{ range(10) | reject('divisibleby', 3) |"
               " list }}",
               "[0, 2, 4, 6, 8]|[1, 2, 4, 5, 7, 8]");
    text_gives("{{ [none, 1, '', 0, 'a'] | select | list }}", "[1, 'a']");
    text_gives("{{ ls | map('upper') | join('+') }}|{{ ls | map('replace', 'a', 'z') | list }}",
               "B+A|['b', 'z']");
    text_gives("{{ ['a', 'A', 'b'] | unique | list }}|{{ ['a', 'A'] | unique(true) | list }}|{{ ["
               "1, 1.0, true] | unique | list }}",
               "['a', 'b']|['a', 'A']|[1]");
    text_gives("{{ l | reverse | list }}|{{ 'abc' | reverse }}", "[2, 1, 3]|cba");
    text_gives("{{ range(7) | batch(3) | list }}|{{ range(7) | batch(3, 'x') | map('join', '-') |"
               " join(' ') }}",
               "[[0, 1, 2], [3, 4, 5], [6]]|0-1-2 3-4-5 6-x-x");
    text_gives("{{ range(7) | slice(3) | list }}|{{ range(7) | slice(3, 'x') | list }}",
               "[[0, 1, 2], [3, 4], [5, 6]]|[[0, 1, 2], [3, 4, 'x'], [5, 6, 'x']]");
    text_gives("{{ messages | groupby('role') | map(attribute='grouper') | list }}",
               "['assistant', 'system', 'user']");
    text_gives("{{ d | items | list }}|{{ nope | items | list }}|{{ {'b': 2, 'a': 1} | dictsort }"
               "}|{{ {'b': 1, 'a': 2} | dictsort(by='value') }}",
               "[('b', 1), ('a', [1, {'k': 'v'}]), ('z', None)]|[]|[('a', 1), ('b', 2)]|[('b', 1)"
               ", ('a', 2)]");
    text_gives("{{ n | default('x') }}|{{ n | default('x', true) }}|{{ nope | d('y') }}|{{ '' | d"
               "efault('z', boolean=true) }}",
               "None|x|y|z");
}

static void tojson_writes_as_json_dumps(void **state)
{
    text_gives("{{ d | tojson }}", "{\"b\": 1, \"a\": [1, {\"k\": \"v\"}], \"z\": null}");
    text_gives("{{ d | tojson(indent=2) }}",
               "{\n  \"b\": 1,\n  \"a\": [\n    1,\n    {\n      \"k\": \"v\"\n    }\n  ],\n  \"z"
               "\": null\n}");
    text_gives("{{ [1, 2.0, 1e20, -0.5, true, none, 'x', (1, 2), {}, []] | tojson }}",
               "[1, 2.0, 1e+20, -0.5, true, null, \"x\", [1, 2], {}, []]");
    text_gives("{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}",
               "{\"1\": 4, \"null\": 3, \"1.5\": 5}");
    text_gives("{{ \"a\\\"b'c<d>&\\\\\\n\\t\\u00e9\\u0001\" | tojson }}|{{ uni | tojson(ensure_as"
               "cii=true) }}",
               "\"a\\\"b'c<d>&\\\\\\n\\t\303\251\\u0001\"|\"h\\u00e9llo \\u65e5\\ud83d\\ude00\"");
    text_gives("{{ d | tojson(sort_keys=true, separators=(',', ':')) }}",
               "{\"a\":[1,{\"k\":\"v\"}],\"b\":1,\"z\":null}");
    text_gives("{{ [[], {'a': []}] | tojson(indent='\\t') }}|{{ [1] | tojson(indent=0) }}",
               "[\n\t[],\n\t{\n\t\t\"a\": []\n\t}\n]|[\n1\n]");
    text_gives("{{ 1e400 | tojson }}", "Infinity");
}

static void tests_answer(void **state)
{
    text_gives("{{ n is none }}|{{ t is true }}|{{ i is integer }}|{{ half is float }}|{{ true is"
               " number }}|{{ s is string }}|{{ d is mapping }}|{{ l is sequence }}|{{ s is itera"
               "ble }}",
               "True|True|True|True|True|True|True|True|True");
    text_gives("{{ nope is defined }}|{{ nope is undefined }}|{{ n is defined }}|{{ i is not none"
               " }}|{{ true is integer }}|{{ 1 is boolean }}",
               "False|True|True|True|False|False");
    text_gives("{{ 3 is odd }}|{{ 4 is even }}|{{ 9 is divisibleby 3 }}|{{ 9 is divisibleby(4) }}",
               "True|True|True|False");
    text_gives("{{ 1 is eq 1 }}|{{ 1 is lt 2 }}|{{ 2 is ge 3 }}|{{ 1 is in [1] }}|{{ 'a' is in 'a"
               "bc' }}|{{ 1 is ne 1 }}",
               "True|True|False|True|True|False");
    text_gives("{{ 'abc' is lower }}|{{ 'ABC' is upper }}|{{ 'upper' is filter }}|{{ 'odd' is tes"
               "t }}|{{ 'nope' is filter }}|{{ range is callable }}",
               "True|True|True|True|False|True");
    text_gives("{{ none is sameas none }}|{{ 1 is sameas true }}|{{ d is sameas d }}|{{ ('x' | sa"
               "fe) is escaped }}",
               "True|False|True|True");
}

static void methods_of_strings(void **state)
{
    text_gives("{{ '  x '.strip() }}|{{ 'xyaxy'.strip('yx') }}|{{ 'xyaxy'.lstrip('yx') }}|{{ 'xya"
               "xy'.rstrip('yx') }}",
               "x|a|axy|xya");
    text_gives("{{ ' a b  c '.split() }}|{{ 'a,b,c'.split(',', 1) }}|{{ 'a,b,c'.rsplit(',', 1) }}"
               "|{{ ' a b  c '.split(none, 1) }}",
               "['a', 'b', 'c']|['a', 'b,c']|['a,b', 'c']|['a', 'b  c ']");
    text_gives("{{ 'a-b-c'.partition('-') }}|{{ 'a-b-c'.rpartition('-') }}|{{ 'abc'.partition('-'"
               ") }}|{{ 'a\\nb\\r\\nc'.splitlines() }}",
               "('a', '-', 'b-c')|('a-b', '-', 'c')|('abc', '', '')|['a', 'b', 'c']");
    text_gives("{{ 'abcabc'.find('b', 2) }}|{{ 'abcabc'.rfind('b') }}|{{ 'abc'.find('x') }}|{{ 'b"
               "anana'.count('an') }}|{{ uni.find('o') }}",
               "4|4|-1|2|4");
    text_gives("{{ 'abc'.startswith('a') }}|{{ 'abc'.startswith(('x', 'a')) }}|{{ 'abc'.endswith("
               "'x') }}|{{ 'abc'.removeprefix('a') }}|{{ 'abc'.removesuffix('c') }}",
               "True|True|False|bc|ab");
    text_gives("{{ ','.join(['a', 'b']) }}|{{ 'aXbX'.replace('X', '--', 1) }}|{{ '42'.zfill(5) }}"
               "|{{ '-42'.zfill(5) }}|{{ 'x'.center(6, '*') }}|{{ 'x'.ljust(3, '.') }}|{{ 'x'.rju"
               "st(3) }}",
               "a,b|a--bX|00042|-0042|**x***|x..|  x");
    text_gives("{{ 'hello world'.title() }}|{{ 'aBc'.swapcase() }}|{{ 'hELLO'.capitalize() }}|{{ "
               "'Stra\\u00dfe'.casefold() }}",
               "Hello World|AbC|Hello|strasse");
    text_gives("{{ 'ab1'.isalnum() }}|{{ 'ab'.isalpha() }}|{{ '12'.isdigit() }}|{{ 'AB'.isupper()"
               " }}|{{ 'Ab Cd'.istitle() }}|{{ ' '.isspace() }}|{{ 'a_1'.isidentifier() }}",
               "True|True|True|True|True|True|True");
    text_gives("{{ '{} {0}'.replace('0', '') }}|{{ '{:>5}|{:<5}|{:^5}|{:05d}|{:,}|{:.2f}|{!r}'.fo"
               "rmat('a', 'b', 'c', 42, 1234567, 2.345, 'q') }}",
               "{} {}|    a|b    |  c  |00042|1,234,567|2.35|'q'");
    text_gives("{{ '{a[k]} {0[1]} {b:{w}}|'.format([1, 2], a={'k': 'v'}, b='x', w=3) }}",
               "v 2 x  |");
    text_gives("{{ '%s-%d-%5.2f|%x|%05d|%-5s|%+d|%%|%r' % ('a', 3, 2.5, 255, 42, 'b', 7, 'q') }}",
               "a-3- 2.50|ff|00042|b    |+7|%|'q'");
}

static void methods_of_dicts_and_lists(void **state)
{
    text_gives("{{ d.get('b') }}|{{ d.get('q') }}|{{ d.get('q', 3) }}|{{ d.keys() | list }}|{{ d."
               "values() | list }}",
               "1|None|3|['b', 'a', 'z']|[1, [1, {'k': 'v'}], None]");
    text_gives("{{ d.items() | list | length }}|{{ d.copy() }}|{{ [1, 2, 1].count(1) }}|{{ [1, 2,"
               " 3].index(2) }}|{{ (1, 2).index(2) }}",
               "3|{'b': 1, 'a': [1, {'k': 'v'}], 'z': None}|2|1|1");
    text_gives("{{ dict(a=1, b=2) }}|{{ dict([('a', 1)]) }}|{{ dict({'x': 1}, y=2) }}|{{ namespac"
               "e(a=1).a }}",
               "{'a': 1, 'b': 2}|{'a': 1}|{'x': 1, 'y': 2}|1");
}

static void loops_have_their_variables(void **state)
{
    text_gives("{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revin"
               "dex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}",
               "1032TrueFalse3;2121FalseFalse3;3210FalseTrue3;");
    text_gives("{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}",
               "<3>1 3<1>2 1<2> ");
    text_gives("{% for x in [1, 1, 2, 2] %}{{ loop.changed(x) }}{{ loop.cycle('a', 'b') }}{% endf"
               "or %}",
               "TrueaFalsebTrueaFalseb");
    text_gives("{% for x in range(9) if x is even %}{{ loop.index }}:{{ x }}/{{ loop.length }} {%"
               " endfor %}",
               "1:0/5 2:2/5 3:4/5 4:6/5 5:8/5 ");
    text_gives("{% for k, v in d.items() %}{{ k }}={{ v }}{{ ',' if not loop.last }}{% endfor %}",
               "b=1,a=[1, {'k': 'v'}],z=None");
    text_gives("{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "123");
    text_gives("{% for x in el %}a{% else %}b{% endfor %}{% for x in nope %}a{% else %}b{% endfor"
               " %}",
               "bb");
    text_gives("{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% if x == 2 %}{% "
               "break %}{% endif %}{% endfor %}",
               "32");
    text_gives("{% for x in l %}{% break %}{% else %}none ended{% endfor %}", "none ended");
    text_gives("{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% els"
               "e %}{{ x }}{{ loop.depth }}{% endif %}{% endfor %}",
               "11(22(33))");
    text_gives("{% for x in l %}{% set outer = loop %}{% for y in ls %}{{ outer.index }}{{ loop.i"
               "ndex }} {% endfor %}{% endfor %}",
               "11 12 21 22 31 32 ");
    text_gives("{% set ns = namespace(f=false) %}{% for m in messages if not ns.f %}{{ m.role }}{"
               "% if m.role == 'user' %}{% set ns.f = true %}{% endif %}{% endfor %}",
               "systemuser");
    text_gives("{% for c in uni %}{{ c }}.{% endfor %}{{ loop }}",
               "h.\303\251.l.l.o. .\346\227\245.\360\237\230\200.");
    text_gives("{% set g = l | map('string') %}{{ g | join }}{{ g | join }}{{ 'y' if g }}", "312y");
}

static void scopes_follow_jinja(void **state)
{
    text_gives("{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }},{% endfor %}{{ x }}",
               "4,2,3,1");
    text_gives("{% if t %}{% set x = 1 %}{% endif %}{{ x }}", "1");
    text_gives("{% set ns = namespace(v=0, w='a') %}{% for y in l %}{% set ns.v = ns.v + y %}{% e"
               "ndfor %}{{ ns.v }}{{ ns.w }}{{ ns.q }}",
               "6a");
    text_gives("{% set a, b = 1, 2 %}{% set (c, d2) = [3, 4] %}{{ a }}{{ b }}{{ c }}{{ d2 }}",
               "1234");
    text_gives("{% set x %}block {{ i }}{% endset %}[{{ x }}]{% set y | upper %}b{{ s }}{% endset"
               " %}[{{ y }}]",
               "[block 7][BHELLO, WORLD]");
    text_gives("{% set a = 5 %}{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}", "155");
    text_gives("{% generation %}{% set x = 1 %}g{{ x }}{% endgeneration %}{{ x }}", "g1");
    text_gives("{% set q = 1 %}{% block a %}{{ q }}{% endblock %}{% for q in l %}{% block b %}{{ "
               "q }}{% endblock %}{% endfor %}",
               "1111");
    text_gives("{% set messages = messages[1:] %}{% for m in messages %}{{ m.role }}{% endfor %}",
               "userassistant");
}

static void macros_take_arguments(void **state)
{
    text_gives("{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1,"
               " 3) }}{{ m(1, c=5) }}{{ m() }}{{ m(b=1, a=2) }}",
               "12x;13x;125;2x;21x;");
    text_gives("{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) "
               "}}",
               "1(2, 3){'x': 4}");
    text_gives("{% macro m(x) %}{% if x > 0 %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m("
               "5) }}",
               "54321");
    text_gives("{% macro m(l) %}{% for x in l %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call("
               "y) m(l) %}<{{ y }}>{% endcall %}",
               "<3><1><2>");
    text_gives("{% macro m() %}{{ zz }}{{ caller is defined }}{% endmacro %}{% set zz = 5 %}{{ m("
               ") }}",
               "5False");
    text_gives("{% macro m(a, b, c) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(*[1, 2], **{'c': 3}"
               ") }}{{ m.name }}{{ m.arguments }}",
               "123m('a', 'b', 'c')");
    text_gives("{% filter upper | replace('A', '-') %}abc {{ s }}{% endfilter %}",
               "-BC HELLO, WORLD");
    text_gives("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{% set j "
               "= joiner('|') %}{{ j() }}{{ j() }}",
               "aba|");
}

static void white_space_is_controlled(void **state)
{
    text_gives("A {%- if t -%} B {%- endif -%} C", "ABC");
    text_gives("a\n  {{- s }}\n b", "aHello, World\n b");
    text_gives("a\n  {%- if t %}\n b\n  {% endif %}\n c", "a b\n c");
    text_gives("  {%+ if t %}x{% endif +%}\ny", "  x\ny");
    text_gives("{% if t +%}\nx{% endif %}\ny", "\nxy");
    text_gives("x\n\t {% if t %}y{% endif %}\t\nz", "x\ny\t\nz");
    text_gives("x  {% if t %}y{% endif %}  z", "x  y  z");
    text_gives("{# c #}\nx", "x");
    text_gives("a {#- c -#} x", "ax");
    text_gives("{#-#}x", "x");
    text_gives("{# c -#}  \n x", "x");
    text_gives("   {{ s }}\nA", "   Hello, World\nA");
    text_gives("x\n", "x");
    text_gives("x\n\n", "x\n");
    text_gives("a\r\n{% if t %}\r\nb\r\n{% endif %}\r\nc", "a\nb\nc");
    text_gives("{% raw -%}   {{ z }}   {%- endraw %}", "{{ z }}");
    text_gives("{% raw %}\n{{ x }}{# #}\n{% endraw %}\nz", "\n{{ x }}{# #}\nz");
    text_gives("{{ '{{' }}{{ '%}' }}{{ {'a': {'b': 1}}.a.b }}", "{{%}1");
    text_gives("{%- for m in messages %}\n    {{- m.role + ': ' }}\n    {%- if loop.last %}!{% en"
               "dif %}\n{%- endfor %}\n",
               "system: user: assistant: !");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arithmetic_follows_python),   cmocka_unit_test(logic_gives_operands),
        cmocka_unit_test(comparisons_chain),           cmocka_unit_test(subscripts_and_slices),
        cmocka_unit_test(values_print_as_in_python),   cmocka_unit_test(filters_on_text),
        cmocka_unit_test(filters_on_numbers),          cmocka_unit_test(filters_on_sequences),
        cmocka_unit_test(tojson_writes_as_json_dumps), cmocka_unit_test(tests_answer),
        cmocka_unit_test(methods_of_strings),          cmocka_unit_test(methods_of_dicts_and_lists),
        cmocka_unit_test(loops_have_their_variables),  cmocka_unit_test(scopes_follow_jinja),
        cmocka_unit_test(macros_take_arguments),       cmocka_unit_test(white_space_is_controlled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
