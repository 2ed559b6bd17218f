package inventory

type IPVersion uint8
