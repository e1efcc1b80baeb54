# SPDX-License-Identifier: Apache-2.0
"""The screen as a picture: well-formed, readable without a network, saying what the screen says."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from views_data import missing

from tracer.views.svg import to_svg


def test_the_picture_is_xml_and_needs_no_network() -> None:
    picture = to_svg(missing())
    ElementTree.fromstring(picture)
    links = set(re.findall(r"https?://[^\s\"<]+", picture))
    assert links == {"http://www.w3.org/2000/svg"}
    assert "url(" not in picture.replace("url(#", "")


def test_the_picture_says_what_the_screen_says() -> None:
    words = "".join(ElementTree.fromstring(to_svg(missing())).itertext()).replace("\u00a0", " ")
    assert "Streams" in words and "Locks" in words
